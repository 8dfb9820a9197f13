-- The two databases, and for each program a role with only what it needs: docs/security.md. psql runs this file once,
-- as the superuser.
\getenv accounts_password ACCOUNTS_PASSWORD
\getenv resonate_password RESONATE_PASSWORD

CREATE ROLE accounts LOGIN PASSWORD :'accounts_password';
CREATE ROLE resonate LOGIN PASSWORD :'resonate_password';
CREATE DATABASE accounts;
CREATE DATABASE resonate OWNER resonate;  -- the server makes and changes its own tables
REVOKE ALL ON DATABASE accounts, resonate, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE accounts TO accounts;

\connect accounts
CREATE TABLE accounts (uuid text COLLATE "C" PRIMARY KEY, guid text COLLATE "C" NOT NULL UNIQUE);
CREATE TABLE reference (one boolean PRIMARY KEY CHECK (one), id text NOT NULL);
GRANT SELECT, INSERT ON accounts, reference TO accounts;  -- a row is never changed or deleted

# The program and only what it needs. The container is a worker; another command is named when it is started:
#   docker build --tag create-account .
#   docker run --rm --security-opt seccomp=unconfined --env TB_ADDRESS=... create-account python -m operations audit
FROM python:3.13-slim
WORKDIR /app

# Before the code, so that a change of the code does not install them again.
COPY requirements.txt .
RUN pip install --no-cache-dir --only-binary :all: --require-hashes --requirement requirements.txt

COPY create_account.py .
COPY clients clients
COPY operations operations
RUN python -m compileall -q .

USER 65534:65534
CMD ["python", "-m", "operations", "worker", "--health-file", "/tmp/healthy"]
# The worker touches the file every 30 s while the stores and the server answer.
HEALTHCHECK --interval=5s --timeout=5s --start-period=2m CMD test "$(find /tmp/healthy -mmin -1.5)"

# Hearth in a container. It makes sandboxes of its own in there, so it needs the capabilities and options that
# docker-compose.yml names; never --privileged.
#
#   docker build -t hearth .                              compiles it
#   docker build -t hearth --target prebuilt .            takes target/release/hearth as it is
#
# BASE must have a glibc as new as the one that hearth was compiled against.
ARG BASE=debian:12
ARG RUST=rust:1.95-bookworm

FROM ${BASE} AS runtime
# The base `minimal` for scripts and dynamic executables is copied from this image's own packages: a shell and core tools
# are in it. Add what your functions need (certificates, time zones) with RUN lines here.
ENV HEARTH_DATA_DIR=/var/lib/hearth
VOLUME /var/lib/hearth
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/hearth"]
# Inside, Hearth must listen on the container's address: publish the port on 127.0.0.1 of the host only, for calls need no key.
CMD ["serve", "--listen", "0.0.0.0:8080", "--insecure"]

FROM runtime AS prebuilt
COPY target/release/hearth /usr/local/bin/hearth

FROM ${RUST} AS compile
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM runtime AS hearth
COPY --from=compile /src/target/release/hearth /usr/local/bin/hearth

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A CGI/1.1 program for `/fn/hello-cgi/…`: the request comes in variables and on stdin, the answer is a header block, an
# empty line and a body. `/status/NNN` answers with that status.
set -eu

if [ -z "${GATEWAY_INTERFACE-}" ]; then
    echo "hello-cgi: not called as CGI: use /fn/hello-cgi/… instead of /invoke/hello-cgi" >&2
    exit 1
fi

path=${PATH_INFO-}
status='200 OK'
case $path in
    /status/[2-5][0-9][0-9]) status="${path#/status/} As Asked" ;;
esac
bytes=$(wc -c)

# Nothing that the caller chose goes into a header but three digits.
printf 'Status: %s\n' "$status"
printf 'Content-Type: text/plain; charset=utf-8\n'
printf 'X-Hello: %s\n\n' "$GREETING"

printf '%s from a function!\n' "$GREETING"
printf 'method: %s\n' "$REQUEST_METHOD"
printf 'path: %s\n' "$path"
printf 'query: %s\n' "${QUERY_STRING-}"
printf 'type: %s\n' "${CONTENT_TYPE-}"
printf 'body: %s bytes\n' "$((bytes))"

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A request as the environment of a process.

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderName, header, request::Parts};
use hearth_protocol::SmallName;
use percent_encoding::percent_decode_str;

use crate::problem::RequestError;

/// The most bytes of names and values. The environment travels to the sandbox in one packet of at most 56 KiB.
const ENV_BYTES_MAX: usize = 32 * 1024;

/// Where functions are mounted.
pub(crate) const MOUNT: &str = "/fn/";

/// Headers that no function sees. `authorization` and `proxy-authorization` are for servers in between; `proxy` would
/// become HTTP_PROXY, which programs take for a setting (httpoxy, CVE-2016-5385); the rest concern one connection, or
/// have a variable of their own.
const WITHHELD: [HeaderName; 10] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy"),
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::EXPECT,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
];

/// What the environment is made from.
pub(crate) struct Request<'a> {
    pub(crate) function: &'a SmallName,
    pub(crate) parts: &'a Parts,
    pub(crate) body_bytes: usize,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// The variables of a request.
pub(crate) fn environment(request: &Request<'_>) -> Result<Vec<(String, String)>, RequestError> {
    let uri = &request.parts.uri;
    let script_name = format!("{MOUNT}{}", request.function);
    let raw_path_info = uri.path().strip_prefix(&script_name).unwrap_or_default();
    let path_info = decode_path(raw_path_info)?;
    let headers = &request.parts.headers;
    let host = host_of(request.parts).unwrap_or_else(|| request.local.to_string());
    let server_name = host
        .rsplit_once(':')
        .filter(|(name, _)| !name.ends_with(':'))
        .map_or(host.as_str(), |(name, _)| name);
    let path_and_query = uri
        .path_and_query()
        .map_or(uri.path(), |both| both.as_str());

    let mut env = Vec::with_capacity(24 + headers.len());
    let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
    set("GATEWAY_INTERFACE", "CGI/1.1".to_owned());
    set(
        "SERVER_SOFTWARE",
        concat!("Hearth/", env!("CARGO_PKG_VERSION")).to_owned(),
    );
    set("SERVER_PROTOCOL", format!("{:?}", request.parts.version));
    set("SERVER_NAME", server_name.to_owned());
    set("SERVER_PORT", request.local.port().to_string());
    set("REQUEST_METHOD", request.parts.method.as_str().to_owned());
    set("QUERY_STRING", uri.query().unwrap_or_default().to_owned());
    set("SCRIPT_NAME", script_name.clone());
    set("PATH_TRANSLATED", path_info.clone());
    set("PATH_INFO", path_info);
    set("CONTENT_LENGTH", request.body_bytes.to_string());
    set(
        "CONTENT_TYPE",
        headers
            .get(header::CONTENT_TYPE)
            .map(|value| text(value.as_bytes()))
            .unwrap_or_default(),
    );
    set("REMOTE_ADDR", request.peer.ip().to_string());
    set("REMOTE_HOST", request.peer.ip().to_string());
    // Hearth authenticates nobody on a function's behalf.
    set("REMOTE_USER", String::new());
    set("AUTH_TYPE", String::new());
    set("X_FULL_URL", format!("http://{host}{path_and_query}"));
    set("X_MATCHED_ROUTE", format!("{script_name}/..."));
    set("X_RAW_PATH_INFO", raw_path_info.to_owned());
    add_headers(headers, &mut env);

    let seen_bytes = env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if ENV_BYTES_MAX < seen_bytes {
        return Err(RequestError::HeadersTooLarge {
            limit_bytes: ENV_BYTES_MAX,
            seen_bytes,
        });
    }
    Ok(env)
}

/// The authority that the client addressed.
fn host_of(parts: &Parts) -> Option<String> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => Some(parts.headers.get(header::HOST)?.to_str().ok()?.to_owned()),
    }
}

/// The path as a function sees it, decoded once.
fn decode_path(raw: &str) -> Result<String, RequestError> {
    let bad = |problem: &str| RequestError::BadRequest {
        problem: format!("the path {problem}"),
    };
    let path = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_not_utf8| bad("is not UTF-8"))?;
    if path.contains(char::is_control) {
        return Err(bad("holds a control character"));
    }
    // Clients resolve these before they send; what still has them is looking for a way out of a folder.
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(bad("holds a . or .. segment"));
    }
    Ok(path.into_owned())
}

fn add_headers(headers: &HeaderMap, env: &mut Vec<(String, String)>) {
    for name in headers.keys() {
        // `X_A` and `X-A` would become the same variable: only the form with the hyphen is passed on.
        let plain = name
            .as_str()
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_alphanumeric());
        if !plain || WITHHELD.contains(name) {
            continue;
        }
        let separator = if name == header::COOKIE { "; " } else { ", " };
        let values: Vec<String> = headers
            .get_all(name)
            .iter()
            .map(|value| text(value.as_bytes()))
            .collect();
        let variable = format!(
            "HTTP_{}",
            name.as_str().to_ascii_uppercase().replace('-', "_")
        );
        env.push((variable, values.join(separator)));
    }
}

/// A header's bytes as text: UTF-8 where they are, else each byte one character (ISO 8859-1, RFC 9110 section 5.5).
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::http;

    use super::*;

    #[expect(clippy::unwrap_in_result, reason = "what a test itself makes is right")]
    fn env_of(builder: http::request::Builder) -> Result<BTreeMap<String, String>, RequestError> {
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let function = SmallName::new("a").unwrap();
        let peer = "192.0.2.7:5000".parse().unwrap();
        let local = "127.0.0.1:8080".parse().unwrap();
        environment(&Request {
            function: &function,
            parts: &parts,
            body_bytes: 5,
            peer,
            local,
        })
        .map(|env| env.into_iter().collect())
    }

    #[test]
    fn a_request_becomes_the_variables_of_cgi() {
        let builder = http::Request::post("/fn/a/b%20c/d?x=1&y=%2F")
            .header("host", "localhost:8080")
            .header("content-type", "text/plain")
            .header("accept", "a")
            .header("accept", "b")
            .header("cookie", "c=1")
            .header("cookie", "d=2");
        let env = env_of(builder).unwrap();
        let expected = [
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("REQUEST_METHOD", "POST"),
            ("SCRIPT_NAME", "/fn/a"),
            ("PATH_INFO", "/b c/d"),
            ("X_RAW_PATH_INFO", "/b%20c/d"),
            ("QUERY_STRING", "x=1&y=%2F"),
            ("CONTENT_LENGTH", "5"),
            ("CONTENT_TYPE", "text/plain"),
            ("SERVER_NAME", "localhost"),
            ("SERVER_PORT", "8080"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("X_FULL_URL", "http://localhost:8080/fn/a/b%20c/d?x=1&y=%2F"),
            ("HTTP_ACCEPT", "a, b"),
            ("HTTP_COOKIE", "c=1; d=2"),
            ("HTTP_HOST", "localhost:8080"),
        ];
        for (name, value) in expected {
            assert_eq!(env[name], value, "{name}");
        }
    }

    #[test]
    fn headers_that_are_not_for_functions_or_pretend_to_be_settings_are_withheld() {
        let builder = http::Request::get("/fn/a")
            .header("authorization", "Bearer secret")
            .header("proxy", "http://evil")
            .header("connection", "close")
            .header("x_forwarded_for", "1.2.3.4");
        let env = env_of(builder).unwrap();
        for name in [
            "HTTP_AUTHORIZATION",
            "HTTP_PROXY",
            "HTTP_CONNECTION",
            "HTTP_X_FORWARDED_FOR",
        ] {
            assert!(!env.contains_key(name), "{name}");
        }
        assert_eq!(env["PATH_INFO"], "");
    }

    #[test]
    fn a_path_that_hides_nul_dot_dot_or_bad_utf8_is_refused() {
        for path in [
            "/fn/a/%00",
            "/fn/a/..%2fb",
            "/fn/a/%2e%2e/b",
            "/fn/a/.",
            "/fn/a/%ff",
            "/fn/a/%0a",
        ] {
            assert!(
                matches!(
                    env_of(http::Request::get(path)),
                    Err(RequestError::BadRequest { .. })
                ),
                "{path}"
            );
        }
    }

    #[test]
    fn an_environment_beyond_its_limit_is_refused() {
        let builder = http::Request::get("/fn/a").header("x-big", "x".repeat(ENV_BYTES_MAX));
        assert!(matches!(
            env_of(builder),
            Err(RequestError::HeadersTooLarge { .. })
        ));
    }
}

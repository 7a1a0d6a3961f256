// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The header block that a function's output begins with (RFC 3875 section 6), read as bytes from a stranger: nothing
//! reaches the wire but what was taken apart and put together again.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};

/// The longest header block, in bytes. Must stay within what the pool holds back ([`hearth_pool::HOLD_BYTES`]), else a
/// block would be judged before it is complete.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most header fields.
const FIELDS_MAX: usize = 64;

/// Fields that concern one connection (RFC 9110 section 7.6.1), or say what hyper says itself.
const STRIPPED: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Names that only Hearth puts on an answer.
const OWN_PREFIX: &str = "hearth-";

/// What the header block says.
#[derive(Debug)]
pub(crate) struct Head {
    status: StatusCode,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Where the body begins.
    pub(crate) body_at: usize,
}

impl Head {
    pub(crate) fn into_response(self, body: Body) -> Response {
        // These have no body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5), so neither have they its length.
        let without = [
            StatusCode::NO_CONTENT,
            StatusCode::RESET_CONTENT,
            StatusCode::NOT_MODIFIED,
        ];
        let body = if without.contains(&self.status) {
            Body::empty()
        } else {
            body
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        for (name, value) in self.fields {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// What the pool asks of the first output of an invocation ([`hearth_pool::HeadCheck`]).
pub(crate) fn check(output: &[u8]) -> Result<(), String> {
    parse_head(output).map(drop)
}

/// Takes the header block apart.
///
/// # Errors
/// One sentence that says what is wrong with it.
pub(crate) fn parse_head(output: &[u8]) -> Result<Head, String> {
    let mut status = None;
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let window = &output[at..output.len().min(HEAD_BYTES_MAX)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            return Err(format!(
                "it has no header block that ends with an empty line within {HEAD_BYTES_MAX} bytes"
            ));
        };
        let line = window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]);
        at += end + 1;
        if line.is_empty() {
            break;
        }
        if fields.len() == FIELDS_MAX {
            return Err(format!("it has more than {FIELDS_MAX} header fields"));
        }
        let (name, value) = field(line)?;
        match name.as_str() {
            "status" if status.is_some() => return Err("it has more than one Status".to_owned()),
            "status" => status = Some(parse_status(&value)?),
            _ => fields.push((name, value)),
        }
    }
    finish(status, fields, at)
}

fn field(line: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    let colon = line.iter().position(|byte| *byte == b':');
    let Some((name, value)) = colon.map(|at| (&line[..at], &line[at + 1..])) else {
        return Err("a line of its header block has no colon".to_owned());
    };
    let name = HeaderName::from_bytes(name)
        .map_err(|_bad| "a header field's name is not a token".to_owned())?;
    // `from_bytes` refuses CR, LF, NUL and the other control characters but tab.
    let value = HeaderValue::from_bytes(value.trim_ascii())
        .map_err(|_bad| format!("the header field {name} holds a control character"))?;
    Ok((name, value))
}

/// `CODE` or `CODE text`, CODE an answer's final status.
fn parse_status(value: &HeaderValue) -> Result<StatusCode, String> {
    let bytes = value.as_bytes();
    let code = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    match StatusCode::from_bytes(code) {
        Ok(status) if (200..600).contains(&status.as_u16()) => Ok(status),
        Ok(_) | Err(_) => Err("its Status is not a code from 200 to 599".to_owned()),
    }
}

fn finish(
    status: Option<StatusCode>,
    mut fields: Vec<(HeaderName, HeaderValue)>,
    body_at: usize,
) -> Result<Head, String> {
    let has = |wanted: HeaderName| fields.iter().any(|(name, _)| *name == wanted);
    let (location, content_type) = (has(header::LOCATION), has(header::CONTENT_TYPE));
    if status.is_none() && !location && !content_type {
        return Err("it has none of Status, Location and Content-Type".to_owned());
    }
    let implied = if location {
        StatusCode::FOUND
    } else {
        StatusCode::OK
    };
    let named_by_connection: Vec<String> = fields
        .iter()
        .filter(|(name, _)| name == header::CONNECTION)
        .filter_map(|(_, value)| value.to_str().ok())
        .flat_map(|value| {
            value
                .split(',')
                .map(|name| name.trim().to_ascii_lowercase())
        })
        .collect();
    fields.retain(|(name, value)| {
        let stripped = STRIPPED.contains(name)
            || named_by_connection
                .iter()
                .any(|other| other == name.as_str());
        !stripped && !name.as_str().starts_with(OWN_PREFIX) && !is_wide_cookie(name, value)
    });
    Ok(Head {
        status: status.unwrap_or(implied),
        fields,
        body_at,
    })
}

/// A cookie that names a domain would be sent to every host below it, far beyond this function.
fn is_wide_cookie(name: &HeaderName, value: &HeaderValue) -> bool {
    let attributes = || value.as_bytes().split(|byte| *byte == b';').skip(1);
    let is_domain = |attribute: &[u8]| {
        let attribute = attribute.trim_ascii();
        attribute
            .get(..6)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"domain"))
    };
    *name == header::SET_COOKIE && attributes().any(is_domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(output: &[u8]) -> Response {
        parse_head(output).unwrap().into_response(Body::empty())
    }

    #[test]
    fn a_header_block_becomes_status_and_headers_and_the_rest_the_body() {
        let output =
            b"Status: 404 Not here\r\nContent-Type: text/plain\nX-A: 1\nX-A:  2 \n\nbody\n\nmore";
        let head = parse_head(output).unwrap();
        assert_eq!(&output[head.body_at..], b"body\n\nmore");
        let response = head.into_response(Body::empty());
        assert_eq!(response.status(), 404);
        let values: Vec<_> = response.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
    }

    #[test]
    fn a_location_alone_redirects_and_a_content_type_alone_is_a_success() {
        assert_eq!(response(b"Location: /x\n\n").status(), 302);
        assert_eq!(response(b"Content-Type: a/b\n\n").status(), 200);
        assert_eq!(response(b"Status: 204\n\n").status(), 204);
    }

    #[test]
    fn fields_of_the_connection_and_fields_that_only_hearth_sets_are_stripped() {
        let output = b"Content-Type: a/b\nContent-Length: 3\nTransfer-Encoding: chunked\nConnection: close, X-Hop\n\
            X-Hop: 1\nKeep-Alive: 1\nHearth-Start: warm\nSet-Cookie: a=b; Domain=example.com\nSet-Cookie: c=d\nX-Keep: 1\n\n";
        let response = response(output);
        let mut names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "set-cookie", "x-keep"]);
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 1);
    }

    #[test]
    fn what_could_split_an_answer_is_refused() {
        let many = "X-A: 1\n".repeat(FIELDS_MAX + 1);
        let long = format!("Content-Type: a/b\nX-A: {}\n\n", "x".repeat(HEAD_BYTES_MAX));
        let bad: [&[u8]; 14] = [
            b"",
            b"hello",
            b"\n",
            b"X-A: 1\n\n",
            b"Content-Type: a/b\n",
            b"Content-Type: a/b\n folded\n\n",
            b"Content-Type: a/b\nX A: 1\n\n",
            b"Content-Type: a/b\nX-A : 1\n\n",
            b"Content-Type: a/b\nX-A: a\rb\n\n",
            b"Content-Type: a/b\nX-A: a\0b\n\n",
            b"Status: 100\n\n",
            b"Status: 200\nStatus: 200\n\n",
            many.as_bytes(),
            long.as_bytes(),
        ];
        for output in bad {
            assert!(
                check(output).is_err(),
                "{:?}",
                String::from_utf8_lossy(&output[..output.len().min(60)])
            );
        }
        for status in ["abc", "20", "0x1", "-200", "1000", "600"] {
            assert!(
                check(format!("Status: {status}\n\n").as_bytes()).is_err(),
                "{status}"
            );
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who may ask for what: the management key, and the Host and Origin of a request.
//!
//! Loopback is not a trust boundary: any web page that a browser on this machine shows can send requests to it, and can
//! make a name of its own resolve to it (DNS rebinding). Both show in headers that a page cannot forge.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use subtle::ConstantTimeEq;

use crate::problem::RequestError;

/// The management key and the names of this server.
pub(crate) struct Access {
    key: String,
    hosts: Vec<String>,
}

impl Access {
    pub(crate) fn new(key: String, allowed_hosts: Vec<String>) -> Self {
        let hosts = allowed_hosts
            .into_iter()
            .map(|host| host.to_ascii_lowercase())
            .collect();
        Self { key, hosts }
    }

    /// Whether the request carries the management key.
    pub(crate) fn check_key(&self, headers: &HeaderMap) -> Result<(), RequestError> {
        let given = headers
            .get(header::AUTHORIZATION)
            .ok_or(RequestError::Unauthorized)?
            .as_bytes();
        let (scheme, token) = given.split_at(given.len().min(BEARER.len()));
        if !scheme.eq_ignore_ascii_case(BEARER) {
            return Err(RequestError::Unauthorized);
        }
        // In constant time, so that how long a wrong key takes says nothing about the right one.
        if bool::from(token.ct_eq(self.key.as_bytes())) {
            Ok(())
        } else {
            Err(RequestError::Forbidden)
        }
    }

    /// Whether the request addresses this server by a name that is this server's, from a page that is this server's
    /// if from a page at all.
    pub(crate) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), RequestError> {
        let foreign = |header| Err(RequestError::ForeignHost { header });
        // Of both, where there are both: whoever is in front may go by the one or by the other. HTTP/1.0 has none, and
        // no browser speaks it.
        let mut authorities = headers
            .get_all(header::HOST)
            .iter()
            .map(as_text)
            .chain(uri.authority().map(axum::http::uri::Authority::as_str));
        if !authorities.all(|authority| self.is_own(authority))
            || 1 < headers.get_all(header::HOST).iter().count()
        {
            return foreign("host");
        }
        let is_own_origin = |origin: &HeaderValue| {
            let authority = as_text(origin)
                .split_once("://")
                .map(|(_scheme, authority)| authority);
            authority.is_some_and(|authority| self.is_own(authority))
        };
        if !headers.get_all(header::ORIGIN).iter().all(is_own_origin) {
            return foreign("origin");
        }
        // An image or a link of a foreign page sends no Origin, but a browser says where it stood (Fetch Metadata).
        let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        let is_foreign_site = matches!(site, Some(b"cross-site" | b"same-site"));
        if is_foreign_site && !headers.contains_key(header::ORIGIN) {
            return foreign(SEC_FETCH_SITE);
        }
        Ok(())
    }

    /// IP addresses cannot be rebound and `localhost` is never resolved elsewhere; any other name must be listed.
    fn is_own(&self, authority: &str) -> bool {
        let (host, rest) = match authority.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').unwrap_or_default(),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        // Nothing may follow but a port: in `localhost:80@evil.example` the host is the last part.
        let port = rest.strip_prefix(':').unwrap_or(rest);
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        host.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

/// Where the page stood that made a browser send this, as the browser sees it (W3C Fetch Metadata Request Headers).
const SEC_FETCH_SITE: &str = "sec-fetch-site";

const BEARER: &[u8] = b"bearer ";

/// A header that is not ASCII names no host of ours.
fn as_text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access::new("k3y".to_owned(), vec!["Hearth.example".to_owned()])
    }

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    #[test]
    fn only_the_key_opens_and_a_wrong_one_is_told_from_none() {
        assert!(
            access()
                .check_key(&with("authorization", "Bearer k3y"))
                .is_ok()
        );
        assert!(
            access()
                .check_key(&with("authorization", "bearer k3y"))
                .is_ok()
        );
        for wrong in ["Bearer ", "Bearer k3", "Bearer k3yy", "Bearer K3Y"] {
            assert!(
                matches!(
                    access().check_key(&with("authorization", wrong)),
                    Err(RequestError::Forbidden)
                ),
                "{wrong}"
            );
        }
        for none in ["", "Basic k3y", "k3y"] {
            assert!(
                matches!(
                    access().check_key(&with("authorization", none)),
                    Err(RequestError::Unauthorized)
                ),
                "{none}"
            );
        }
        assert!(matches!(
            access().check_key(&HeaderMap::new()),
            Err(RequestError::Unauthorized)
        ));
    }

    #[test]
    fn a_name_that_a_hostile_page_could_have_made_resolve_here_is_refused() {
        let uri = Uri::from_static("/");
        for own in [
            "127.0.0.1:8080",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8080",
            "192.0.2.1",
            "hearth.example:80",
        ] {
            assert!(
                access().check_host(&uri, &with("host", own)).is_ok(),
                "{own}"
            );
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "",
            "hearth.example.evil",
            "localhost:80@evil.example",
            "127.0.0.1:80@evil.example",
            "[::1]evil.example",
            "[::1",
        ] {
            assert!(
                access().check_host(&uri, &with("host", foreign)).is_err(),
                "{foreign}"
            );
        }
        assert!(
            access()
                .check_host(
                    &Uri::from_static("http://evil.example/"),
                    &with("host", "localhost")
                )
                .is_err()
        );
    }

    #[test]
    fn a_request_from_a_foreign_page_is_refused_and_from_no_page_is_not() {
        let uri = Uri::from_static("/");
        assert!(access().check_host(&uri, &HeaderMap::new()).is_ok());
        assert!(
            access()
                .check_host(&uri, &with("origin", "http://localhost:8080"))
                .is_ok()
        );
        for site in ["cross-site", "same-site"] {
            assert!(
                access()
                    .check_host(&uri, &with("sec-fetch-site", site))
                    .is_err()
            );
        }
        for site in ["same-origin", "none"] {
            assert!(
                access()
                    .check_host(&uri, &with("sec-fetch-site", site))
                    .is_ok()
            );
        }
        for foreign in [
            "null",
            "http://evil.example",
            "https://evil.example:8080",
            "",
        ] {
            assert!(
                access().check_host(&uri, &with("origin", foreign)).is_err(),
                "{foreign}"
            );
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The HTTP side of the client commands: one server, one key, and answers that are either what was asked for or a
//! [`Failure`] with the server's own sentence and fix.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, AsSendBody, Body};

use crate::args::Server;
use crate::config::{Environment, URL_DEFAULT, default_data_dir};
use crate::exit::{Code, Failure};

/// The file in the data directory that holds the management key.
pub(crate) const KEY_FILE: &str = "key";

/// The largest key file, in bytes; a key has 64.
const KEY_BYTES_MAX: u64 = 4096;

/// The largest management answer that is read, in bytes: bounded logs of a function are the largest.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The largest problem document that is read, in bytes.
const PROBLEM_BYTES_MAX: u64 = 256 * 1024;

/// How long connecting may take; the server is near.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long an answer may take to begin: a deploy compiles (up to 10 s of it on a busy machine, and it may wait for others),
/// an invocation may wait in the queue and then run up to its own limit.
const ANSWER_MAX: Duration = Duration::from_secs(900);

/// A server and the right to manage it.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    url: String,
    key: Key,
}

/// Where the management key came from.
enum Key {
    Known(String),
    /// There is none; why and where is told only when the server asks for one.
    Missing(String),
}

impl std::fmt::Debug for Key {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(_) => f.write_str("Known"),
            Self::Missing(why) => f.debug_tuple("Missing").field(why).finish(),
        }
    }
}

/// What the server says of a request that failed (RFC 9457, with Hearth's `code`, `evidence` and `fix`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    code: String,
    fix: String,
    evidence: Value,
}

impl Client {
    /// For the server that flags and environment name.
    pub(crate) fn new(server: &Server, environment: &Environment) -> Result<Self, Failure> {
        let url = server.url.as_deref().or(environment.get("HEARTH_URL"));
        let data_dir = server.data_dir.clone();
        let data_dir = data_dir.or_else(|| environment.get("HEARTH_DATA_DIR").map(PathBuf::from));
        let data_dir = data_dir.unwrap_or_else(|| default_data_dir(environment));
        let key = match environment.get("HEARTH_KEY") {
            Some(key) => Key::Known(key.to_owned()),
            None => read_key(&data_dir),
        };
        Self::connect(url.unwrap_or(URL_DEFAULT), key)
    }

    /// For a server whose data directory is at hand.
    pub(crate) fn of_instance(url: &str, data_dir: &Path) -> Result<Self, Failure> {
        Self::connect(url, read_key(data_dir))
    }

    fn connect(url: &str, key: Key) -> Result<Self, Failure> {
        if !url.starts_with("http://") {
            let sentence = format!("{url:?} is not a URL that hearth can call");
            return Err(Failure::of(Code::Usage, sentence)
                .with_fix("give --url http://HOST:PORT; there is no TLS yet"));
        }
        let config = Agent::config_builder()
            // Answers with an error status carry the sentence to print.
            .http_status_as_error(false)
            // A redirect would carry the key elsewhere.
            .max_redirects(0)
            // A proxy from the environment has no business between this command and a local server.
            .proxy(None)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            url: url.trim_end_matches('/').to_owned(),
            key,
        })
    }

    /// Where the server is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Reads a management resource.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let request = self.agent.get(format!("{}{path}", self.url));
        let request = match &self.key {
            Key::Known(key) => request.header("authorization", format!("Bearer {key}")),
            Key::Missing(_) => request,
        };
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        read_whole(self.checked(answer)?)
    }

    /// Stores a management resource.
    pub(crate) fn put(&self, path: &str, kind: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let request = self.agent.put(format!("{}{path}", self.url));
        let request = request
            .header("authorization", self.bearer()?)
            .header("content-type", kind);
        let answer = request
            .send(body)
            .map_err(|error| self.unreachable(&error))?;
        read_whole(self.checked(answer)?)
    }

    /// Has a management request done that takes this much longer than an answer usually may.
    pub(crate) fn post(
        &self,
        path: &str,
        kind: &str,
        body: &[u8],
        longer: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = request
            .config()
            .timeout_recv_response(Some(ANSWER_MAX.saturating_add(longer)))
            .build()
            .header("authorization", self.bearer()?)
            .header("content-type", kind);
        let answer = request
            .send(body)
            .map_err(|error| self.unreachable(&error))?;
        read_whole(self.checked(answer)?)
    }

    /// Removes a management resource.
    pub(crate) fn delete(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.url));
        let request = request.header("authorization", self.bearer()?);
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        read_whole(self.checked(answer)?)
    }

    /// Calls a function; the answer's body is left to be read.
    pub(crate) fn invoke(
        &self,
        name: &str,
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Failure> {
        let request = self.agent.post(format!("{}/invoke/{name}", self.url));
        let request = request.header("content-type", "application/octet-stream");
        let answer = request
            .send(body)
            .map_err(|error| self.unreachable(&error))?;
        self.checked(answer)
    }

    fn bearer(&self) -> Result<String, Failure> {
        match &self.key {
            Key::Known(key) => Ok(format!("Bearer {key}")),
            Key::Missing(why) => Err(missing_key(why)),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let sentence = format!("cannot call {}: {}", self.url, crate::exit::chain(error));
        Failure::of(Code::Unreachable, sentence)
            .with_fix("start a server with `sudo hearth serve`, or name it with --url")
    }

    /// An answer that is no error.
    fn checked(&self, mut answer: Response<Body>) -> Result<Response<Body>, Failure> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if let (401, Key::Missing(why)) = (status.as_u16(), &self.key) {
            return Err(missing_key(why));
        }
        let invocation = header(&answer, "hearth-invocation");
        let read = answer.body_mut().with_config().limit(PROBLEM_BYTES_MAX);
        let text = read.read_to_vec().unwrap_or_default();
        let problem: Problem = serde_json::from_slice(&text).unwrap_or_default();
        let code = match status.as_u16() {
            401 | 403 => Code::NotAllowed,
            _ => Code::Failed,
        };
        Err(problem.into_failure(code, status.as_u16(), invocation))
    }
}

impl Problem {
    fn into_failure(self, exit: Code, status: u16, invocation: Option<String>) -> Failure {
        let mut sentence = match (self.detail.as_str(), self.title.as_str()) {
            ("", "") => format!("the server answered {status}"),
            ("", title) => title.to_owned(),
            (detail, _) => detail.to_owned(),
        };
        if !self.code.is_empty() {
            sentence = format!("{} ({status}): {sentence}", self.code);
        }
        let mut lines = Vec::new();
        evidence_lines("", &self.evidence, &mut lines);
        for line in lines {
            sentence.push_str("\n  - ");
            sentence.push_str(&line);
        }
        if let Some(id) = invocation {
            sentence.push_str("\n  more: hearth receipt ");
            sentence.push_str(&id);
        }
        let failure = Failure::of(exit, sentence);
        if self.fix.is_empty() {
            failure
        } else {
            failure.with_fix(self.fix)
        }
    }
}

/// Evidence as a person would write it: one line per fact.
fn evidence_lines(name: &str, value: &Value, lines: &mut Vec<String>) {
    match (value, value.get("at"), value.get("problem")) {
        (Value::Null, ..) => {}
        (_, Some(Value::String(place)), Some(Value::String(problem))) => {
            lines.push(format!("{place}: {problem}"));
        }
        (Value::Object(fields), ..) => {
            for (name, value) in fields {
                evidence_lines(name, value, lines);
            }
        }
        (Value::Array(items), ..) => {
            for item in items {
                evidence_lines(name, item, lines);
            }
        }
        (simple, ..) => {
            let text = match simple {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let name = if name.is_empty() || name == "problems" {
                String::new()
            } else {
                format!("{name}: ")
            };
            lines.push(format!("{name}{text}"));
        }
    }
}

fn missing_key(why: &str) -> Failure {
    Failure::of(
        Code::NotAllowed,
        format!("this needs the management key, and {why}"),
    )
    .with_fix(
        "run the same command with sudo, or set HEARTH_KEY to the content of the server's key file",
    )
}

fn read_key(data_dir: &Path) -> Key {
    let path = data_dir.join(KEY_FILE);
    let read = || {
        let mut text = String::new();
        let file = std::fs::File::open(&path)?;
        file.take(KEY_BYTES_MAX).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text.trim().to_owned())
    };
    match read() {
        Ok(key) => Key::Known(key),
        Err(error) => Key::Missing(format!("{} cannot be read: {error}", path.display())),
    }
}

fn read_whole(mut answer: Response<Body>) -> Result<Vec<u8>, Failure> {
    let read = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    read.read_to_vec().map_err(|error| {
        let sentence = format!("the answer broke off: {}", crate::exit::chain(&error));
        Failure::of(Code::Failed, sentence)
    })
}

/// A header's text.
pub(crate) fn header(answer: &Response<Body>, name: &str) -> Option<String> {
    let value = answer.headers().get(name)?;
    value.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_printed_with_its_code_its_evidence_and_its_fix() {
        let problem: Problem = serde_json::from_str(
            r#"{"title":"bad manifest","code":"bad_manifest","detail":"two keys are wrong","evidence":
                {"problems":[{"at":"limits.memory","problem":"0 is too small"},"nme: unknown key"],
                 "limit":7},"fix":"mend them"}"#,
        )
        .unwrap();
        let text = problem.into_failure(Code::Failed, 400, None).text();
        assert_eq!(
            text,
            "bad_manifest (400): two keys are wrong\n  - limit: 7\n  - limits.memory: 0 is too small\n  - nme: unknown key\n  fix: mend them"
        );
    }

    #[test]
    fn an_answer_that_is_no_problem_document_still_gives_a_sentence() {
        let text = Problem::default()
            .into_failure(Code::Failed, 502, None)
            .text();
        assert_eq!(text, "the server answered 502");
    }

    #[test]
    fn a_url_without_http_is_refused_before_anything_is_sent() {
        let key = Key::Known("secret".to_owned());
        let failure = Client::connect("ftp://example", key).unwrap_err();
        assert!(failure.text().contains("--url"));
    }

    #[test]
    fn the_key_is_not_in_debug_output() {
        let client = Client::connect(URL_DEFAULT, Key::Known("secret".to_owned())).unwrap();
        assert!(!format!("{client:?}").contains("secret"));
    }
}

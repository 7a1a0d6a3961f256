// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Names that end up in paths. They are checked when they are made, and again whenever they are decoded, so that no
//! value of these types can hold a slash, a dot-dot or a NUL.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A function's or a base's name: `[a-z0-9-]{1,63}`, not beginning or ending with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SmallName(String);

/// Why a text is not a [`SmallName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to {SMALL_NAME_LEN_MAX} of a-z, 0-9 and -, and does not begin or end with -")]
pub struct NameProblem;

/// The longest name, in bytes: a DNS label's limit (RFC 1035 section 2.3.4), so that a name can become a host name.
const SMALL_NAME_LEN_MAX: usize = 63;

impl SmallName {
    /// # Errors
    /// [`NameProblem`] where `text` does not have the form above.
    pub fn new(text: impl Into<String>) -> Result<Self, NameProblem> {
        let text = text.into();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=SMALL_NAME_LEN_MAX).contains(&text.len());
        if fits && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-') {
            Ok(Self(text))
        } else {
            Err(NameProblem)
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SmallName {
    type Error = NameProblem;
    fn try_from(text: String) -> Result<Self, NameProblem> {
        Self::new(text)
    }
}

impl From<SmallName> for String {
    fn from(name: SmallName) -> Self {
        name.0
    }
}

impl fmt::Display for SmallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many hexadecimal digits a [`TreeId`] has: SHA-256.
pub const TREE_ID_LEN: usize = 64;

/// The content hash of a stored file tree, in lower-case hexadecimal: also its directory's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreeId(String);

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tree id is {TREE_ID_LEN} lower-case hexadecimal digits")]
pub struct TreeIdProblem;

impl TreeId {
    /// # Errors
    /// [`TreeIdProblem`] where `text` is not 64 lower-case hexadecimal digits.
    pub fn new(text: impl Into<String>) -> Result<Self, TreeIdProblem> {
        let text = text.into();
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == TREE_ID_LEN && text.bytes().all(is_hex) {
            Ok(Self(text))
        } else {
            Err(TreeIdProblem)
        }
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TreeId {
    type Error = TreeIdProblem;
    fn try_from(text: String) -> Result<Self, TreeIdProblem> {
        Self::new(text)
    }
}

impl From<TreeId> for String {
    fn from(id: TreeId) -> Self {
        id.0
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for text in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0",
            "A",
            "a_b",
            "-a",
            "a-",
            "%2e%2e",
            "ü",
            &"a".repeat(64),
        ] {
            assert!(SmallName::new(text).is_err(), "{text:?}");
        }
        for text in ["a", "a-b", "0", &"a".repeat(63)] {
            assert!(SmallName::new(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_decoded_name_is_checked_as_a_new_one_is() {
        let mut packet = Vec::new();
        crate::frame::encode(&"../x".to_owned(), b"", &mut packet).unwrap();
        assert!(crate::frame::decode_bare::<SmallName>(&packet).is_err());
        assert!(crate::frame::decode_bare::<TreeId>(&packet).is_err());
    }
}

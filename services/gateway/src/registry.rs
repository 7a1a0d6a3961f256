// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The functions that can be invoked. A deploy replaces one entry at once: an invocation finds the old revision or the
//! new one, whole, and keeps what it found until it ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use axum::http::HeaderValue;
use hearth_pool::{Program, Target};
use hearth_protocol::{SmallName, TreeId, spawner::Profile};
use serde_json::{Value, json};

use crate::{detect::Form, manifest::Manifest, problem::RequestError};

/// What every native function's environment begins with; a manifest may say otherwise. Without a search path not even
/// a shell's child finds the tools of its base, and /tmp is the one place that can be written.
const NATIVE_ENV: [(&str, &str); 3] = [
    ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ("HOME", "/tmp"),
    ("TMPDIR", "/tmp"),
];

/// One deployed function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) target: Arc<Target>,
    pub(crate) content_type: HeaderValue,
    entry: String,
    deployed_ms: u64,
}

impl Function {
    /// A revision as the pool runs it. `profile` is a native function's; `tree` holds its files, or for wasm its compiled
    /// module.
    pub(crate) fn new(
        manifest: Manifest,
        form: &Form,
        profile: Profile,
        revision: TreeId,
        tree: TreeId,
        deployed_ms: u64,
    ) -> Self {
        let scaling = form.scaling(&manifest);
        let program = match form {
            Form::Native { base } => Program::Native {
                profile,
                base: base.clone(),
                root: manifest.root,
                entry: manifest.entry.clone(),
            },
            Form::Wasm => Program::Wasm,
        };
        // The manifest has checked that it is visible ASCII.
        let content_type = HeaderValue::from_str(&manifest.content_type)
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        let target = Target {
            function: manifest.name,
            revision,
            tree,
            program,
            env: environment(form, manifest.env),
            limits: manifest.limits,
            scaling,
        };
        Self {
            target: Arc::new(target),
            content_type,
            entry: manifest.entry,
            deployed_ms,
        }
    }

    /// The same revision with other rules for its sandboxes: none of them is one of this one's.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Target)) -> Self {
        let mut target = Target::clone(&self.target);
        change(&mut target);
        Self {
            target: Arc::new(target),
            content_type: self.content_type.clone(),
            entry: self.entry.clone(),
            deployed_ms: self.deployed_ms,
        }
    }

    pub(crate) fn name(&self) -> &SmallName {
        &self.target.function
    }

    /// What `GET /v1/functions/{name}` says. Values of the environment are left out: people put secrets there.
    pub(crate) fn describe(&self) -> Value {
        let Target {
            function,
            revision,
            program,
            env,
            limits,
            scaling,
            ..
        } = &*self.target;
        let base = match program {
            Program::Native { base, .. } => Some(base.as_str()),
            Program::Wasm => None,
        };
        let seccomp = match program {
            Program::Native { profile, .. } => profile.name(),
            Program::Wasm => "wasm",
        };
        json!({
            "name": function,
            "revision": revision,
            "kind": self.target.kind(),
            "contract": "stdio",
            "base": base,
            "seccomp": seccomp,
            "observed": matches!(self.target.profile(), Profile::Observed(_)),
            "entry": self.entry,
            "content_type": self.content_type.to_str().unwrap_or_default(),
            "deployed_ms": self.deployed_ms,
            "limits": {
                "memory_bytes": limits.memory_bytes,
                "cpu_millis": limits.cpu_millis,
                "pids": limits.pids,
                "timeout_ms": limits.timeout.as_millis(),
                "scratch_bytes": limits.scratch_bytes,
                "request_bytes": limits.request_bytes,
                "response_bytes": limits.response_bytes,
                "log_bytes": limits.log_bytes,
            },
            "scaling": {
                "max_instances": scaling.instances_max,
                "max_inflight": scaling.inflight_max,
                "min_warm": scaling.warm_min,
                "idle_timeout_ms": scaling.idle_timeout.as_millis(),
            },
            "env": env.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        })
    }
}

/// The manifest's variables after those that it does not name.
fn environment(form: &Form, own: Vec<(String, String)>) -> Vec<(String, String)> {
    let given: &[(&str, &str)] = match form {
        Form::Native { .. } => &NATIVE_ENV,
        Form::Wasm => &[],
    };
    let lacking = given
        .iter()
        .filter(|(name, _)| own.iter().all(|(own_name, _)| own_name != name));
    let lacking = lacking.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    lacking.chain(own.iter().cloned()).collect()
}

/// All deployed functions by name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    functions: RwLock<BTreeMap<SmallName, Arc<Function>>>,
}

impl Registry {
    pub(crate) fn find(&self, name: &SmallName) -> Result<Arc<Function>, RequestError> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions
            .get(name)
            .cloned()
            .ok_or(RequestError::UnknownFunction)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Makes `function` the one of its name, and gives back the one that was.
    pub(crate) fn replace(&self, function: Arc<Function>) -> Option<Arc<Function>> {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        functions.insert(function.name().clone(), function)
    }

    /// Makes `new` the function of its name where `old` is that now; false where it is not.
    pub(crate) fn swap(&self, old: &Arc<Function>, new: Arc<Function>) -> bool {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match functions.get_mut(old.name()) {
            Some(current) if Arc::ptr_eq(current, old) => {
                *current = new;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(crate) fn remove(&self, name: &SmallName) -> Option<Arc<Function>> {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        functions.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_function_has_a_search_path_and_a_place_to_write_unless_its_manifest_says_otherwise()
    {
        let native = Form::Native {
            base: SmallName::new("minimal").unwrap(),
        };
        let own = vec![("HOME".to_owned(), "/function".to_owned())];
        let env = environment(&native, own.clone());
        let value = |name: &str| {
            env.iter()
                .filter(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(value("HOME"), ["/function"]);
        assert_eq!(value("TMPDIR"), ["/tmp"]);
        assert_eq!(environment(&Form::Wasm, own.clone()), own);
    }
}

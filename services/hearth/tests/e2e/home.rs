// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where an instance keeps its data, and whose it is: root's, or an ordinary user's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::instance::HEARTH;
use crate::tenant::{self, Tenant};

/// A folder that is removed when the last user of it is gone.
#[derive(Debug, Clone)]
pub(crate) struct Home(Arc<Place>);

#[derive(Debug)]
struct Place {
    folder: tempfile::TempDir,
    tenant: Option<Tenant>,
}

impl Home {
    /// Root's, or of an ordinary user where all instances are to be (`tenant`).
    pub(crate) fn new() -> Self {
        if tenant::owns_all_instances() {
            let tenant = Tenant::new().expect("a host that lets an ordinary user have one");
            Self::of(tenant)
        } else {
            Self(Arc::new(Place {
                folder: folder(),
                tenant: None,
            }))
        }
    }

    /// One that belongs to this user, with an executable that the user can reach.
    pub(crate) fn of(tenant: Tenant) -> Self {
        let home = Self(Arc::new(Place {
            folder: folder(),
            tenant: Some(tenant),
        }));
        reachable(home.path());
        home.give(&home.data());
        home
    }

    /// A new folder that belongs to whom the home belongs to.
    pub(crate) fn give(&self, path: &Path) {
        fs::create_dir(path).expect("a folder");
        if let Some(tenant) = self.tenant() {
            let (uid, gid) = tenant.ids();
            chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// The user whose it is, where that is not root.
    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        self.0.tenant.as_ref()
    }

    /// The executable under test, as whom the home belongs to starts it.
    pub(crate) fn hearth(&self) -> Command {
        match self.tenant() {
            Some(tenant) => tenant.starts(&self.path().join("hearth")),
            None => Command::new(HEARTH),
        }
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// A place for other files of the test.
    pub(crate) fn path(&self) -> &Path {
        self.0.folder.path()
    }

    /// The instance's id.
    pub(crate) fn instance(&self) -> String {
        let text = fs::read_to_string(self.data().join("instance")).expect("it was started once");
        text.trim().to_owned()
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("hearth-e2e-")
        .tempdir()
        .expect("a directory");
    // The gateway's user must be able to pass through.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    folder
}

/// Where the build's directory is closed to others, the executable is reached by another name.
pub(crate) fn reachable(folder: &Path) -> PathBuf {
    let program = folder.join("hearth");
    fs::hard_link(HEARTH, &program)
        .or_else(|_other_disk| fs::copy(HEARTH, &program).map(drop))
        .expect("a link or a copy");
    program
}

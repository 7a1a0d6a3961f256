// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What outlives the process, in SQLite: functions, the modules and artifacts behind wasm ones, trees to be removed,
//! and receipts. All calls block on a disk: shards make them on a blocking thread.

mod receipts;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearth_protocol::{SmallName, TreeId};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

pub(crate) use receipts::{History, LOGGED_BYTES_MAX, LogQuery, ReceiptLimits};

/// The database's file name in the state directory.
const FILE_NAME: &str = "hearth.sqlite";

/// The schema below. A database of a newer one belongs to a newer Hearth and is not touched.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE functions (
        name TEXT PRIMARY KEY,
        revision TEXT NOT NULL,
        base TEXT,              -- NULL for wasm
        module TEXT,            -- NULL for native: sha256 of the module
        tree TEXT NOT NULL,
        manifest TEXT NOT NULL, -- the text of function.toml
        deployed_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE modules (sha256 TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT;
    CREATE TABLE artifacts (
        module TEXT NOT NULL,
        compiler TEXT NOT NULL,
        cpu TEXT NOT NULL,
        tree TEXT NOT NULL,
        PRIMARY KEY (module, compiler, cpu)
    ) STRICT;
    CREATE TABLE garbage (tree TEXT PRIMARY KEY) STRICT;
    CREATE TABLE receipts (
        id TEXT PRIMARY KEY,    -- version 7 UUID: sorts by time
        function TEXT NOT NULL,
        received_ms INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        receipt TEXT NOT NULL   -- JSON
    ) STRICT;
    CREATE INDEX receipts_by_function ON receipts (function, id);
";

/// How long one connection waits for another's transaction: far longer than any takes.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot open the database {}", path.display())]
    Open {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error(
        "the database has schema version {found}, this version of Hearth knows up to {SCHEMA_VERSION}"
    )]
    Newer { found: i64 },
    #[error("cannot {step}")]
    Query {
        step: &'static str,
        source: rusqlite::Error,
    },
    #[error("the storage is full")]
    Full,
    #[error("a stored {what} is not readable")]
    Corrupt { what: &'static str },
    #[error("the blocking thread is gone")]
    Thread,
}

/// A function as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredFunction {
    pub(crate) name: SmallName,
    pub(crate) revision: TreeId,
    pub(crate) code: StoredCode,
    pub(crate) tree: TreeId,
    pub(crate) manifest: String,
    pub(crate) deployed_ms: u64,
}

/// What a stored function runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredCode {
    Native { base: SmallName },
    Wasm { module: TreeId },
}

/// What compiled code depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArtifactKey {
    pub(crate) module: TreeId,
    pub(crate) compiler: TreeId,
    pub(crate) cpu: TreeId,
}

/// The database.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database, or makes it.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join(FILE_NAME);
        let connection = connect(&path, "FULL")?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(query("read the schema version"))?;
        if SCHEMA_VERSION < found {
            return Err(StateError::Newer { found });
        }
        if found == 0 {
            let made = format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            );
            connection
                .execute_batch(&made)
                .map_err(query("make the schema"))?;
        }
        Ok(Self {
            path,
            connection: Mutex::new(connection),
        })
    }

    /// All functions.
    pub(crate) fn functions(&self) -> Result<Vec<StoredFunction>, StateError> {
        let connection = self.connection();
        let step = query("load the functions");
        let mut statement = connection
            .prepare("SELECT name, revision, base, module, tree, manifest, deployed_ms FROM functions ORDER BY name")
            .map_err(query("load the functions"))?;
        let rows = statement.query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, Option<String>>(3)?,
                row.get::<_, String>(4)?,
                row.get::<_, String>(5)?,
                row.get::<_, i64>(6)?,
            ))
        });
        let rows: Result<Vec<_>, _> = rows.and_then(Iterator::collect).map_err(step);
        rows?.into_iter().map(function_of_row).collect()
    }

    /// Makes a deploy permanent: all of it or nothing.
    pub(crate) fn put_function(
        &self,
        function: &StoredFunction,
        module: Option<&[u8]>,
    ) -> Result<(), StateError> {
        self.change("store a function", |change| {
            let (base, module_id) = match &function.code {
                StoredCode::Native { base } => (Some(base.as_str()), None),
                StoredCode::Wasm { module } => (None, Some(module.as_str())),
            };
            if let (Some(id), Some(content)) = (module_id, module) {
                change.execute(
                    "INSERT OR IGNORE INTO modules VALUES (?1, ?2)",
                    params![id, content],
                )?;
            }
            let values = params![
                function.name.as_str(),
                function.revision.as_str(),
                base,
                module_id,
                function.tree.as_str(),
                function.manifest,
                i64::try_from(function.deployed_ms).unwrap_or(i64::MAX)
            ];
            change.execute(
                "INSERT OR REPLACE INTO functions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                values,
            )?;
            Ok(())
        })
    }

    pub(crate) fn remove_function(&self, name: &SmallName) -> Result<(), StateError> {
        self.change("remove a function", |change| {
            change.execute(
                "DELETE FROM functions WHERE name = ?1",
                params![name.as_str()],
            )?;
            Ok(())
        })
    }

    /// The compiled code for this key, if there is any.
    pub(crate) fn artifact(&self, key: &ArtifactKey) -> Result<Option<TreeId>, StateError> {
        let sql = "SELECT tree FROM artifacts WHERE module = ?1 AND compiler = ?2 AND cpu = ?3";
        let values = params![key.module.as_str(), key.compiler.as_str(), key.cpu.as_str()];
        let tree: Option<String> = self
            .connection()
            .query_row(sql, values, |row| row.get(0))
            .optional()
            .map_err(query("find an artifact"))?;
        tree.map(|tree| id(tree, "artifact")).transpose()
    }

    /// Notes compiled code, before the function that is to use it: whether the deploy then succeeds or not, the tree
    /// is known, and is garbage if nothing refers to it.
    pub(crate) fn put_artifact(&self, key: &ArtifactKey, tree: &TreeId) -> Result<(), StateError> {
        let connection = self.connection();
        let values = params![
            key.module.as_str(),
            key.compiler.as_str(),
            key.cpu.as_str(),
            tree.as_str()
        ];
        let stored = connection.execute(
            "INSERT OR REPLACE INTO artifacts VALUES (?1, ?2, ?3, ?4)",
            values,
        );
        stored.map(drop).map_err(query("store an artifact"))
    }

    /// Points a wasm function to code that was compiled again.
    pub(crate) fn set_tree(&self, name: &SmallName, tree: &TreeId) -> Result<(), StateError> {
        self.change("point a function to new code", |change| {
            change.execute(
                "UPDATE functions SET tree = ?2 WHERE name = ?1",
                params![name.as_str(), tree.as_str()],
            )?;
            Ok(())
        })
    }

    /// Forgets code that another compiler made, or that is for another machine.
    pub(crate) fn forget_other_artifacts(
        &self,
        compiler: &TreeId,
        cpu: &TreeId,
    ) -> Result<(), StateError> {
        self.change("forget code of another compiler", |change| {
            let values = params![compiler.as_str(), cpu.as_str()];
            change.execute(
                "DELETE FROM artifacts WHERE compiler <> ?1 OR cpu <> ?2",
                values,
            )?;
            Ok(())
        })
    }

    /// A stored module's bytes.
    pub(crate) fn module(&self, module: &TreeId) -> Result<Vec<u8>, StateError> {
        let sql = "SELECT content FROM modules WHERE sha256 = ?1";
        let content = self
            .connection()
            .query_row(sql, params![module.as_str()], |row| row.get(0))
            .optional();
        content
            .map_err(query("read a module"))?
            .ok_or(StateError::Corrupt { what: "module" })
    }

    /// Trees that nothing refers to any more.
    pub(crate) fn garbage(&self) -> Result<Vec<TreeId>, StateError> {
        let connection = self.connection();
        let found =
            strings(&connection, "SELECT tree FROM garbage").map_err(query("list the garbage"))?;
        found.into_iter().map(|tree| id(tree, "tree")).collect()
    }

    /// Notes a tree that was stored for a deploy that failed.
    pub(crate) fn add_garbage(&self, tree: &TreeId) -> Result<(), StateError> {
        self.change("note a tree", |change| {
            change.execute(
                "INSERT OR IGNORE INTO garbage VALUES (?1)",
                params![tree.as_str()],
            )?;
            Ok(())
        })
    }

    pub(crate) fn forget_garbage(&self, tree: &TreeId) -> Result<(), StateError> {
        let forgotten = self.connection().execute(
            "DELETE FROM garbage WHERE tree = ?1",
            params![tree.as_str()],
        );
        forgotten.map(drop).map_err(query("forget a tree"))
    }

    /// Changes functions in one transaction, after which modules, artifacts and trees that nothing refers to any more
    /// are forgotten, noted as garbage, or rescued from it.
    fn change(
        &self,
        step: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StateError> {
        let mut connection = self.connection();
        let changed = (|| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let before: BTreeSet<String> =
                strings(&transaction, REFERRED_TREES)?.into_iter().collect();
            change(&transaction)?;
            transaction.execute_batch(
                "DELETE FROM artifacts WHERE module NOT IN (SELECT module FROM functions WHERE module IS NOT NULL);
                 DELETE FROM modules WHERE sha256 NOT IN (SELECT module FROM functions WHERE module IS NOT NULL);",
            )?;
            let after: BTreeSet<String> =
                strings(&transaction, REFERRED_TREES)?.into_iter().collect();
            for tree in before.difference(&after) {
                transaction.execute("INSERT OR IGNORE INTO garbage VALUES (?1)", params![tree])?;
            }
            transaction.execute(
                &format!("DELETE FROM garbage WHERE tree IN ({REFERRED_TREES})"),
                [],
            )?;
            transaction.commit()
        })();
        changed.map_err(query(step))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(StateError::Thread))
}

const REFERRED_TREES: &str = "SELECT tree FROM functions UNION SELECT tree FROM artifacts";

fn connect(path: &Path, synchronous: &str) -> Result<Connection, StateError> {
    let open = |source| StateError::Open {
        path: path.to_owned(),
        source,
    };
    let connection = Connection::open(path).map_err(open)?;
    connection.busy_timeout(BUSY_WAIT).map_err(open)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(open)?;
    connection
        .pragma_update(None, "synchronous", synchronous)
        .map_err(open)?;
    // This process may write nowhere but in the state directory.
    connection
        .pragma_update(None, "temp_store", "MEMORY")
        .map_err(open)?;
    Ok(connection)
}

fn strings(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare(sql)?
        .query_map([], |row| row.get(0))?
        .collect()
}

type FunctionRow = (
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    String,
    i64,
);

fn function_of_row(
    (name, revision, base, module, tree, manifest, deployed_ms): FunctionRow,
) -> Result<StoredFunction, StateError> {
    let corrupt = StateError::Corrupt { what: "function" };
    let code = match (base, module) {
        (Some(base), None) => SmallName::new(base)
            .ok()
            .map(|base| StoredCode::Native { base }),
        (None, Some(module)) => TreeId::new(module)
            .ok()
            .map(|module| StoredCode::Wasm { module }),
        _ => None,
    };
    let (Ok(name), Some(code)) = (SmallName::new(name), code) else {
        return Err(corrupt);
    };
    Ok(StoredFunction {
        name,
        revision: id(revision, "function")?,
        code,
        tree: id(tree, "function")?,
        manifest,
        deployed_ms: u64::try_from(deployed_ms).unwrap_or(0),
    })
}

fn id(text: String, what: &'static str) -> Result<TreeId, StateError> {
    TreeId::new(text).map_err(|_not_hex| StateError::Corrupt { what })
}

/// For `map_err`: a full disk is told apart, because the operator can do something about it.
fn query(step: &'static str) -> impl FnOnce(rusqlite::Error) -> StateError {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StateError::Full,
        _ => StateError::Query { step, source },
    }
}

#[cfg(test)]
mod tests;

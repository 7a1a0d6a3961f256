// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From an archive to a function that can be invoked, all of it or nothing.
//!
//! ```text
//! unpack ─▶ parse ─▶ detect ─▶ (compile) ─▶ store the tree ─▶ commit ─▶ swap ─▶ retire the old ─▶ sweep
//!                                                             └─ from here on the deploy has happened
//! ```

use std::sync::Arc;

use bytes::Bytes;
use hearth_pool::{ARTIFACT_FILE, Kind, LOAD_STEP, Outcome, Target, TreeFile};
use hearth_protocol::{SmallName, TreeId, spawner::Profile};
use sha2::{Digest, Sha256};

use crate::{
    app::{App, Shard, Trees, internal, now_ms},
    body::HeldBody,
    compile::compile,
    detect::{Form, detect},
    intake::{self, Format, IntakeError, Package, PackedFile, tree_id},
    learned,
    manifest::{self, Manifest},
    metrics::DeployResult,
    problem::RequestError,
    registry::Function,
    store::{ArtifactKey, StoredCode, StoredFunction, blocking},
};

/// What a deploy did.
#[derive(Debug)]
pub(crate) enum Deployed {
    /// There is a new revision.
    New(Arc<Function>),
    /// This content was deployed already.
    Unchanged(Arc<Function>),
}

/// Deploys an archive under `name`.
pub(crate) async fn deploy(
    shard: &Shard,
    name: SmallName,
    archive: HeldBody,
    format: Format,
) -> Result<Deployed, RequestError> {
    let result = deploy_uncounted(shard, name, archive, format).await;
    shard.app.metrics.deployed(match &result {
        Ok(Deployed::New(_)) => DeployResult::Deployed,
        Ok(Deployed::Unchanged(_)) => DeployResult::Unchanged,
        Err(_) => DeployResult::Refused,
    });
    result
}

async fn deploy_uncounted(
    shard: &Shard,
    name: SmallName,
    archive: HeldBody,
    format: Format,
) -> Result<Deployed, RequestError> {
    let app = &*shard.app;
    // Never closed; and a deploy that waits holds its archive, which the limit of body bytes bounds.
    let _turn = app
        .deploys
        .acquire()
        .await
        .map_err(|closed| internal(&closed))?;
    let package = unpack(archive.bytes.clone(), format).await?;
    let manifest = manifest::parse(&package.manifest).map_err(RequestError::BadManifest)?;
    if manifest.name != name {
        return Err(RequestError::Conflict {
            path: name.to_string(),
            manifest: manifest.name.to_string(),
        });
    }
    let form = detect(&manifest, &package, &app.bases()).map_err(RequestError::BadManifest)?;
    match app.registry.find(&name) {
        Ok(current) if current.target.revision == package.revision => {
            Ok(Deployed::Unchanged(current))
        }
        Ok(_) | Err(_) => match form {
            Form::Native { base } => {
                let profile = learned::of_package(&app.pool, &manifest, &package).await?;
                deploy_native(app, manifest, (base, profile), package).await
            }
            Form::Wasm => deploy_wasm(shard, manifest, package).await,
        },
    }
}

/// Removes a function; its running invocations end as they would have.
pub(crate) async fn remove(app: &Arc<App>, name: SmallName) -> Result<(), RequestError> {
    app.registry.find(&name)?;
    let mut trees = app.trees.lock().await;
    let (store, stored_name) = (Arc::clone(&app.store), name.clone());
    blocking(move || store.remove_function(&stored_name)).await?;
    if let Some(old) = app.registry.remove(&name) {
        retire(app, &mut trees, &old);
    }
    sweep(app, &mut trees).await;
    Ok(())
}

/// Removes the trees that nothing refers to any more. What cannot be removed yet is tried again with the next deploy.
pub(crate) async fn sweep(app: &App, trees: &mut Trees) {
    trees.retired.retain(|target| 0 < target.strong_count());
    let held: Vec<TreeId> = trees
        .retired
        .iter()
        .filter_map(|target| Some(target.upgrade()?.tree.clone()))
        .collect();
    let store = Arc::clone(&app.store);
    let garbage = match blocking(move || store.garbage()).await {
        Ok(garbage) => garbage,
        Err(error) => {
            tracing::error!(%error, "cannot sweep");
            return;
        }
    };
    for tree in garbage.into_iter().filter(|tree| !held.contains(tree)) {
        if let Err(error) = app.pool.remove_tree(&tree).await {
            tracing::debug!(%error, %tree, "a tree stays for now");
            continue;
        }
        let store = Arc::clone(&app.store);
        if let Err(error) = blocking(move || store.forget_garbage(&tree)).await {
            tracing::error!(%error, "cannot forget a removed tree");
        }
    }
}

/// Compiled code for a stored module, as a tree: from the cache, or made and stored now.
pub(crate) async fn artifact(
    shard: &Shard,
    key: &ArtifactKey,
    module: Bytes,
    _trees: &Trees,
) -> Result<TreeId, RequestError> {
    if let Some(tree) = cached(&shard.app, key).await? {
        return Ok(tree);
    }
    let code = compile(shard, module).await?;
    store_artifact(&shard.app, key, code).await
}

async fn deploy_native(
    app: &App,
    manifest: Manifest,
    (base, profile): (SmallName, Profile),
    package: Package,
) -> Result<Deployed, RequestError> {
    let files = package
        .files
        .into_iter()
        .map(|(path, file)| tree_file(path, file, &manifest.entry))
        .collect();
    let mut trees = app.trees.lock().await;
    let tree = app.pool.store_tree(files).await?;
    let stored = StoredFunction {
        name: manifest.name.clone(),
        revision: package.revision,
        code: StoredCode::Native { base: base.clone() },
        tree,
        manifest: package.manifest,
        deployed_ms: now_ms(),
    };
    let form = Form::Native { base };
    let function = Function::new(
        manifest,
        &form,
        profile,
        stored.revision.clone(),
        stored.tree.clone(),
        stored.deployed_ms,
    );
    commit(app, &mut trees, function, stored, None).await
}

async fn deploy_wasm(
    shard: &Shard,
    manifest: Manifest,
    mut package: Package,
) -> Result<Deployed, RequestError> {
    let app = &*shard.app;
    let module = package
        .files
        .remove(&manifest.entry)
        .map(|file| file.content)
        .unwrap_or_default();
    let key = key_of(app, &module);
    // Compiled before the trees are locked, so that a slow module holds no other deploy up.
    let code = match cached(app, &key).await? {
        Some(_) => None,
        None => Some(compile(shard, module.clone()).await?),
    };
    let mut trees = app.trees.lock().await;
    let tree = match code {
        Some(code) => store_artifact(app, &key, code).await?,
        // Asked again: what was cached may have gone with its last function meanwhile.
        None => artifact(shard, &key, module.clone(), &trees).await?,
    };
    let stored = StoredFunction {
        name: manifest.name.clone(),
        revision: package.revision,
        code: StoredCode::Wasm { module: key.module },
        tree,
        manifest: package.manifest,
        deployed_ms: now_ms(),
    };
    let function = Function::new(
        manifest,
        &Form::Wasm,
        Profile::Resident,
        stored.revision.clone(),
        stored.tree.clone(),
        stored.deployed_ms,
    );
    commit(app, &mut trees, function, stored, Some(module)).await
}

/// Makes the deploy permanent, then visible.
async fn commit(
    app: &App,
    trees: &mut Trees,
    function: Function,
    stored: StoredFunction,
    module: Option<Bytes>,
) -> Result<Deployed, RequestError> {
    let function = Arc::new(function);
    if let Err(refused) = check_start(app, &function.target).await {
        let (store, tree) = (Arc::clone(&app.store), stored.tree.clone());
        // That this fails too is the likelier the fuller the disk; then the tree stays, which harms nobody.
        drop(blocking(move || store.add_garbage(&tree)).await);
        sweep(app, trees).await;
        return Err(refused);
    }
    let (store, tree) = (Arc::clone(&app.store), stored.tree.clone());
    let committed = blocking(move || {
        let put = store.put_function(&stored, module.as_deref());
        if put.is_err() {
            // The tree is stored and no function has it. That this fails too is the likelier the fuller the disk;
            // then the tree stays, which harms nobody.
            drop(store.add_garbage(&tree));
        }
        put
    });
    committed.await?;
    app.pool.adopt(&function.target);
    if let Some(old) = app.registry.replace(Arc::clone(&function)) {
        retire(app, trees, &old);
    }
    sweep(app, trees).await;
    Ok(Deployed::New(function))
}

/// Whether a wasm module starts within its limits: what compiles may still need more memory than it may have, or not
/// link. A native function's files have no such promise to check.
async fn check_start(app: &App, target: &Target) -> Result<(), RequestError> {
    if target.kind() == Kind::Native {
        return Ok(());
    }
    match app.pool.try_start(0, target).await {
        Ok(()) => Ok(()),
        Err(Outcome::CannotStart { step, message, .. }) if step == LOAD_STEP => {
            Err(RequestError::BadModule {
                problems: vec![message],
            })
        }
        Err(outcome) => Err(RequestError::Sandbox(outcome)),
    }
}

pub(crate) fn retire(app: &App, trees: &mut Trees, old: &Arc<Function>) {
    app.pool.retire(&old.target);
    // An invocation that found the old revision just before the swap may not have its sandbox yet.
    trees.retired.push(Arc::downgrade(&old.target));
}

async fn unpack(archive: Bytes, format: Format) -> Result<Package, RequestError> {
    let unpacked = tokio::task::spawn_blocking(move || intake::unpack(archive, format)).await;
    match unpacked {
        Ok(result) => result.map_err(|error: IntakeError| RequestError::BadArchive {
            problem: error.to_string(),
        }),
        Err(panicked) => Err(internal(&panicked)),
    }
}

fn tree_file(path: String, file: PackedFile, entry: &str) -> TreeFile {
    // The entry is executed whatever mode the archive gave it: not every packer keeps modes.
    let executable = file.executable || path == entry;
    TreeFile {
        path,
        executable,
        content: file.content,
    }
}

fn key_of(app: &App, module: &[u8]) -> ArtifactKey {
    artifact_key(app, tree_id(&Sha256::digest(module)))
}

/// What compiled code of this module is filed under, with this compiler on this machine.
pub(crate) fn artifact_key(app: &App, module: TreeId) -> ArtifactKey {
    ArtifactKey {
        module,
        compiler: app.compiler.tree.clone(),
        cpu: app.cpu.clone(),
    }
}

async fn cached(app: &App, key: &ArtifactKey) -> Result<Option<TreeId>, RequestError> {
    let (store, key) = (Arc::clone(&app.store), key.clone());
    Ok(blocking(move || store.artifact(&key)).await?)
}

async fn store_artifact(app: &App, key: &ArtifactKey, code: Bytes) -> Result<TreeId, RequestError> {
    let file = TreeFile {
        path: ARTIFACT_FILE.to_owned(),
        executable: false,
        content: code,
    };
    let tree = app.pool.store_tree(vec![file]).await?;
    let (store, key, stored) = (Arc::clone(&app.store), key.clone(), tree.clone());
    blocking(move || store.put_artifact(&key, &stored)).await?;
    Ok(tree)
}

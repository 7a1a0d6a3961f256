// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Functions come back by themselves: what is stored is loaded, and code that another compiler or another machine made
//! is made again before invocations are taken.

use std::sync::Arc;

use crate::{
    app::Shard,
    deploy::{artifact, artifact_key, sweep},
    detect::Form,
    learned, manifest,
    problem::RequestError,
    registry::Function,
    store::{StateError, StoredCode, StoredFunction, blocking},
};

/// Loads every function. One that cannot be loaded is reported and left out; the others do not wait for it.
pub(crate) async fn load(shard: &Shard) -> Result<(), StateError> {
    let store = Arc::clone(&shard.app.store);
    for stored in blocking(move || store.functions()).await? {
        let name = stored.name.clone();
        match load_one(shard, stored).await {
            Ok(()) => tracing::info!(function = %name, "function loaded"),
            Err(error) => {
                tracing::error!(function = %name, %error, "a stored function cannot be loaded; deploy it again");
            }
        }
    }
    let (store, compiler, cpu) = (
        Arc::clone(&shard.app.store),
        shard.app.compiler.tree.clone(),
        shard.app.cpu.clone(),
    );
    blocking(move || store.forget_other_artifacts(&compiler, &cpu)).await?;
    let mut trees = shard.app.trees.lock().await;
    sweep(&shard.app, &mut trees).await;
    Ok(())
}

async fn load_one(shard: &Shard, mut stored: StoredFunction) -> Result<(), RequestError> {
    let app = &shard.app;
    let manifest = manifest::parse(&stored.manifest).map_err(RequestError::BadManifest)?;
    let form = match &stored.code {
        StoredCode::Native { base } => Form::Native { base: base.clone() },
        StoredCode::Wasm { module } => {
            stored.tree = compiled(shard, &stored, module).await?;
            Form::Wasm
        }
    };
    let profile = learned::of_stored(&app.pool, &manifest, &stored.tree).await?;
    let function = Arc::new(Function::new(
        manifest,
        &form,
        profile,
        stored.revision,
        stored.tree,
        stored.deployed_ms,
    ));
    app.pool.adopt(&function.target);
    app.registry.replace(function);
    Ok(())
}

/// The tree with the module's code for this compiler and this machine.
async fn compiled(
    shard: &Shard,
    stored: &StoredFunction,
    module: &hearth_protocol::TreeId,
) -> Result<hearth_protocol::TreeId, RequestError> {
    let app = &shard.app;
    let key = artifact_key(app, module.clone());
    let trees = app.trees.lock().await;
    let (store, cached_key) = (Arc::clone(&app.store), key.clone());
    if let Some(tree) = blocking(move || store.artifact(&cached_key)).await? {
        return Ok(tree);
    }
    tracing::info!(function = %stored.name, "compiling again: the stored code is for another compiler or machine");
    let (store, wanted) = (Arc::clone(&app.store), module.clone());
    let content = blocking(move || store.module(&wanted)).await?;
    let tree = artifact(shard, &key, content.into(), &trees).await?;
    let (store, name, stored_tree) = (Arc::clone(&app.store), stored.name.clone(), tree.clone());
    blocking(move || store.set_tree(&name, &stored_tree)).await?;
    Ok(tree)
}

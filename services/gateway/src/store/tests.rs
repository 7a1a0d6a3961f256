// SPDX-License-Identifier: Apache-2.0 OR MIT
use super::*;

fn tree(digit: &str) -> TreeId {
    TreeId::new(digit.repeat(64)).unwrap()
}

fn native(name: &str, its_tree: TreeId) -> StoredFunction {
    StoredFunction {
        name: SmallName::new(name).unwrap(),
        revision: tree("a"),
        code: StoredCode::Native {
            base: SmallName::new("static").unwrap(),
        },
        tree: its_tree,
        manifest: "name = \"x\"".to_owned(),
        deployed_ms: 7,
    }
}

fn wasm(name: &str, module: TreeId, its_tree: TreeId) -> StoredFunction {
    StoredFunction {
        code: StoredCode::Wasm { module },
        ..native(name, its_tree)
    }
}

#[test]
fn functions_come_back_after_the_database_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let functions = [native("a", tree("1")), wasm("b", tree("c"), tree("2"))];
    let store = Store::open(dir.path()).unwrap();
    store.put_function(&functions[0], None).unwrap();
    store.put_function(&functions[1], Some(b"module")).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.functions().unwrap(), functions);
    assert_eq!(store.module(&tree("c")).unwrap(), b"module");
}

#[test]
fn a_tree_becomes_garbage_when_the_last_function_leaves_it_and_is_rescued_when_one_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put_function(&native("a", tree("1")), None).unwrap();
    store.put_function(&native("b", tree("1")), None).unwrap();
    store
        .remove_function(&SmallName::new("a").unwrap())
        .unwrap();
    assert_eq!(store.garbage().unwrap(), []);
    store.put_function(&native("b", tree("2")), None).unwrap();
    assert_eq!(store.garbage().unwrap(), [tree("1")]);
    store.put_function(&native("c", tree("1")), None).unwrap();
    assert_eq!(store.garbage().unwrap(), []);
}

#[test]
fn an_artifact_goes_with_the_last_function_of_its_module() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let key = ArtifactKey {
        module: tree("c"),
        compiler: tree("d"),
        cpu: tree("e"),
    };
    store.put_artifact(&key, &tree("2")).unwrap();
    store
        .put_function(&wasm("a", tree("c"), tree("2")), Some(b"m"))
        .unwrap();
    assert_eq!(store.artifact(&key).unwrap(), Some(tree("2")));
    assert_eq!(
        store
            .artifact(&ArtifactKey {
                cpu: tree("f"),
                ..key.clone()
            })
            .unwrap(),
        None
    );
    store
        .remove_function(&SmallName::new("a").unwrap())
        .unwrap();
    assert_eq!(store.artifact(&key).unwrap(), None);
    assert!(store.module(&tree("c")).is_err());
    assert_eq!(store.garbage().unwrap(), [tree("2")]);
}

#[test]
fn a_database_of_a_newer_hearth_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let path = dir.path().join(FILE_NAME);
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(StateError::Newer { .. })
    ));
    assert!(matches!(
        Store::open(dir.path()),
        Err(StateError::Newer { .. })
    ));
}

#[test]
fn code_of_another_compiler_or_machine_is_forgotten_and_its_tree_goes_unless_a_function_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let old = ArtifactKey {
        module: tree("c"),
        compiler: tree("d"),
        cpu: tree("e"),
    };
    let new = ArtifactKey {
        compiler: tree("f"),
        ..old.clone()
    };
    store.put_artifact(&old, &tree("1")).unwrap();
    store
        .put_function(&wasm("a", tree("c"), tree("1")), Some(b"m"))
        .unwrap();
    store
        .forget_other_artifacts(&new.compiler, &new.cpu)
        .unwrap();
    assert_eq!(
        (store.artifact(&old).unwrap(), store.garbage().unwrap()),
        (None, vec![])
    );
    store.put_artifact(&new, &tree("2")).unwrap();
    store
        .set_tree(&SmallName::new("a").unwrap(), &tree("2"))
        .unwrap();
    assert_eq!(store.garbage().unwrap(), [tree("1")]);
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a deploy refuses, that it leaves nothing behind then, and that it is seen whole or not at all.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::instance::Instance;
use crate::package::{Kind, Package, functions, read, tar};
use crate::turn;
use crate::world;

/// A compile that takes longer than the compiler's own limit is a hang.
pub(crate) const COMPILE_ANSWER_MAX: Duration = Duration::from_secs(40);

pub(crate) fn files(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let owned: Vec<_> = files
        .iter()
        .map(|(path, mode, content)| ((*path).to_owned(), *mode, content.to_vec()))
        .collect();
    tar(&owned)
}

const MANIFEST: &[u8] = b"name = \"refused\"\nentry = \"run.sh\"\n";
const SCRIPT: &[u8] = b"#!/bin/sh\necho never\n";

fn put(instance: &Instance, archive: &[u8]) -> crate::http::Answer {
    instance.manage("PUT", "/v1/functions/refused", archive)
}

#[test]
fn a_manifest_with_several_faults_is_refused_with_all_of_them() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let manifest = b"name = \"refused\"\nentry = \"run.sh\"\ncolour = \"red\"\n[limits]\nmemory = \"lots\"\npids = 0\n[sandbox]\nnetwork = \"egress\"\n";
    let problem = put(
        instance,
        &files(&[
            ("function.toml", 0o644, manifest),
            ("run.sh", 0o755, SCRIPT),
        ]),
    )
    .problem(400, "bad_manifest");
    let problems = problem["evidence"]["problems"].as_array().unwrap();
    let mut places: Vec<&str> = problems
        .iter()
        .map(|one| one["at"].as_str().unwrap())
        .collect();
    places.sort_unstable();
    assert_eq!(
        places,
        ["colour", "limits.memory", "limits.pids", "sandbox.network"],
        "{problem}"
    );
    instance
        .invoke("refused", b"")
        .problem(404, "unknown_function");
}

#[test]
fn a_manifest_that_is_missing_or_names_another_function_or_no_entry_is_refused() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let status = put(instance, &files(&[("run.sh", 0o755, SCRIPT)])).status;
    assert_eq!(status, 400);
    let other = b"name = \"other\"\nentry = \"run.sh\"\n";
    put(
        instance,
        &files(&[("function.toml", 0o644, other), ("run.sh", 0o755, SCRIPT)]),
    )
    .problem(409, "conflict");
    put(instance, &files(&[("function.toml", 0o644, MANIFEST)])).problem(400, "bad_manifest");
    put(instance, b"this is neither tar nor zip").problem(400, "bad_archive");
    put(instance, b"").problem(400, "bad_archive");
    let bearer = format!("Bearer {}", instance.key());
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "text/plain"),
    ];
    let answer = instance.call("PUT", "/v1/functions/refused", &headers, b"text");
    answer.problem(415, "unsupported_media_type");
}

/// A tar header by hand, for what the writer would not write.
fn entry(path: &[u8], kind: u8, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..path.len()].copy_from_slice(path);
    header[100..108].copy_from_slice(b"0000755\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn an_archive_that_reaches_out_of_its_folder_or_is_ambiguous_is_refused_whole_and_leaves_nothing() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    let before = world::stored_trees(&instance.home.data());
    let good = [
        entry(b"function.toml", b'0', b"", MANIFEST),
        entry(b"run.sh", b'0', b"", SCRIPT),
    ]
    .concat();
    let nasty: [(&str, Vec<u8>); 12] = [
        ("parent", entry(b"../escaped", b'0', b"", b"x")),
        ("nested parent", entry(b"a/../../escaped", b'0', b"", b"x")),
        (
            "absolute",
            entry(b"/tmp/hearth-e2e-escaped", b'0', b"", b"x"),
        ),
        ("backslash", entry(b"..\\escaped", b'0', b"", b"x")),
        ("drive", entry(b"C:escaped", b'0', b"", b"x")),
        ("symbolic link", entry(b"link", b'2', b"/etc/passwd", b"")),
        ("hard link", entry(b"hard", b'1', b"run.sh", b"")),
        ("character device", entry(b"device", b'3', b"", b"")),
        ("fifo", entry(b"pipe", b'6', b"", b"")),
        (
            "twice",
            entry(b"run.sh", b'0', b"", b"#!/bin/sh\necho other\n"),
        ),
        ("not UTF-8", entry(b"bad\xff", b'0', b"", b"x")),
        ("file as folder", entry(b"run.sh/inner", b'0', b"", b"x")),
    ];
    for (what, last) in &nasty {
        let archive = [good.as_slice(), last, &[0; 1024]].concat();
        let answer = put(instance, &archive);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        answer.problem(400, "bad_archive");
    }
    let cut = &good[..700];
    put(instance, cut).expect(400);
    instance
        .invoke("refused", b"")
        .problem(404, "unknown_function");
    assert!(!std::path::Path::new("/tmp/hearth-e2e-escaped").exists());
    // Those of another test's function may be taken away meanwhile.
    assert!(world::stored_trees(&instance.home.data()).is_subset(&before));
    instance.assert_clean();
}

#[test]
fn an_archive_that_unpacks_to_more_than_it_may_is_refused_while_it_is_read() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    let before = world::stored_trees(&instance.home.data());
    let resident = world::resident_bytes(instance.gateway());
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    for (name, content) in [("function.toml", MANIFEST), ("run.sh", SCRIPT)] {
        archive.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut archive, content).unwrap();
    }
    archive
        .start_file("bomb", options.large_file(true))
        .unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..300 {
        std::io::Write::write_all(&mut archive, &zeros).unwrap();
    }
    let bomb = archive.finish().unwrap().into_inner();
    assert!(bomb.len() < 2 << 20);
    let bearer = format!("Bearer {}", instance.key());
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/zip"),
    ];
    let answer = instance.call("PUT", "/v1/functions/refused", &headers, &bomb);
    answer.problem(400, "bad_archive");
    let grown = world::resident_bytes(instance.gateway()).saturating_sub(resident);
    assert!(grown < 256 << 20, "the gateway grew by {grown} bytes");
    // Those of another test's function may be taken away meanwhile.
    assert!(world::stored_trees(&instance.home.data()).is_subset(&before));
    instance.assert_clean();
}

#[test]
fn a_zip_archive_is_as_good_as_a_tar() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
    let manifest: &[u8] = b"name = \"zipped\"\nentry = \"run.sh\"\n";
    for (name, content) in [
        ("function.toml", manifest),
        ("run.sh", b"#!/bin/sh\ncat data/words\n"),
        ("data/words", b"from a zip\n"),
    ] {
        archive.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut archive, content).unwrap();
    }
    let bytes = archive.finish().unwrap().into_inner();
    let bearer = format!("Bearer {}", instance.key());
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/zip"),
    ];
    instance
        .call("PUT", "/v1/functions/zipped", &headers, &bytes)
        .expect(201);
    assert_eq!(
        instance.invoke("zipped", b"").expect(200).text(),
        "from a zip\n"
    );
}

#[test]
fn a_module_that_does_not_compile_is_refused_with_the_compilers_words() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let good = read(&functions().join("crc/crc.wasm"));
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 64].fill(0xFF);
    let component = b"\0asm\x0d\0\x01\0".to_vec();
    let modules: [(&str, &[u8]); 4] = [
        ("cut", &good[..good.len() - 10]),
        ("damaged", &flipped),
        ("no start", b"\0asm\x01\0\0\0"),
        ("component", &component),
    ];
    for (what, module) in modules {
        let package = Package::new("refused", "main.wasm", module, "");
        let answer = instance.try_deploy(&package);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        let problem = answer.json();
        let code = problem["code"].as_str().unwrap();
        assert!(
            ["bad_module", "bad_manifest"].contains(&code),
            "{what}: {problem}"
        );
        assert!(
            problem["evidence"]["problems"]
                .as_array()
                .is_some_and(|all| !all.is_empty()),
            "{what}: {problem}"
        );
    }
    instance
        .invoke("refused", b"")
        .problem(404, "unknown_function");
}

/// An unsigned number as wasm writes it.
pub(crate) fn leb(mut number: usize, bytes: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(number & 0x7F).expect("seven bits");
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return;
        }
    }
}

pub(crate) fn section(id: u8, content: &[u8], module: &mut Vec<u8>) {
    module.push(id);
    leb(content.len(), module);
    module.extend_from_slice(content);
}

/// A command with one function of this body.
fn module(body: &[u8]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    section(1, &[1, 0x60, 0, 0], &mut module);
    section(3, &[1, 0], &mut module);
    section(5, &[1, 0, 1], &mut module);
    section(7, b"\x02\x06memory\x02\0\x06_start\0\0", &mut module);
    let mut code = vec![1];
    leb(body.len(), &mut code);
    code.extend_from_slice(body);
    section(10, &code, &mut module);
    module
}

/// Loops within each other, each with a way back, around code that changes every variable: a compiler has to merge each
/// variable at each loop.
fn loops(depth: usize, variables: usize) -> Vec<u8> {
    let mut body = vec![1];
    leb(variables, &mut body);
    body.push(0x7E);
    body.extend([0x03, 0x40].repeat(depth));
    for variable in 0..variables {
        // local.get, i64.const 1, i64.add, local.set
        body.push(0x20);
        leb(variable, &mut body);
        body.extend([0x42, 1, 0x7C, 0x21]);
        leb(variable, &mut body);
    }
    // i32.const 1, br_if 0, end
    body.extend([0x41, 1, 0x0D, 0, 0x0B].repeat(depth));
    body.push(0x0B);
    module(&body)
}

#[test]
fn modules_made_to_keep_the_compiler_busy_are_refused_within_its_limits_and_the_service_goes_on() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    instance.deploy(&Package::script("bystander", "echo fine", ""));
    let (time_bomb, memory_bomb) = (loops(30_000, 0), loops(4_000, 4_000));
    let deploy = |name: &'static str, module: &[u8]| {
        let began = Instant::now();
        let answer = instance.try_deploy(&Package::new(name, "main.wasm", module, ""));
        let problem = answer.problem(400, "bad_module");
        let why = problem["evidence"]["problems"][0].as_str().unwrap();
        println!("{name}: {why}, after {:?}", began.elapsed());
        assert!(why.starts_with("compiling it takes "), "{name}: {why}");
        assert!(
            began.elapsed() < COMPILE_ANSWER_MAX,
            "{name}: {:?}",
            began.elapsed()
        );
        instance.invoke(name, b"").problem(404, "unknown_function");
    };
    std::thread::scope(|scope| {
        // Both cores compile.
        let bombs = [
            scope.spawn(|| deploy("time-bomb", &time_bomb)),
            scope.spawn(|| deploy("memory-bomb", &memory_bomb)),
        ];
        let mut served = 0;
        while !bombs.iter().all(ScopedJoinHandle::is_finished) {
            let answer = instance.invoke("bystander", b"").expect(200);
            assert_eq!(answer.text(), "fine\n");
            served += 1;
        }
        println!("{served} calls of another function meanwhile");
        assert!(100 < served, "{served}");
    });
    instance.assert_clean();
}

#[test]
fn a_deploy_under_load_is_seen_whole_or_not_at_all() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let revision = |number: u32| {
        let text = format!("{number}\n");
        Package::script(
            "versioned",
            &format!("echo {number}; cat other"),
            "[scaling]\nmax_instances = 4",
        )
        .with_file("other", 0o644, text.as_bytes())
    };
    instance.deploy(&revision(0));
    let newest = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut calls = 0;
                    while !done.load(Ordering::Relaxed) {
                        let at_least = newest.load(Ordering::SeqCst);
                        let answer = instance.invoke("versioned", b"").expect(200).text();
                        let numbers: Vec<u32> =
                            answer.lines().map(|line| line.parse().unwrap()).collect();
                        assert_eq!(numbers.len(), 2, "{answer}");
                        assert_eq!(numbers[0], numbers[1], "of two revisions");
                        assert!(
                            at_least <= numbers[0],
                            "{at_least} was deployed before this call, which got {}",
                            numbers[0]
                        );
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        for number in 1..=15 {
            instance.deploy(&revision(number));
            newest.store(number, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
        let calls: u32 = callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .sum();
        println!("{calls} calls during 15 deploys");
        assert!(15 < calls);
    });
    assert_eq!(instance.invoke("versioned", b"").text(), "15\n15\n");
}

#[test]
fn several_deploys_at_once_of_one_function_end_as_one_of_them() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let deploys: Vec<_> = (0..6)
            .map(|number| {
                scope.spawn(move || {
                    instance.deploy(&Package::script("raced", &format!("echo {number}"), ""))
                })
            })
            .collect();
        deploys
            .into_iter()
            .map(|deploy| deploy.join().unwrap())
            .collect()
    });
    let described = instance
        .manage("GET", "/v1/functions/raced", b"")
        .expect(200)
        .json();
    assert!(
        answers
            .iter()
            .any(|answer| answer["revision"] == described["revision"]),
        "{described}"
    );
    let first = instance.invoke("raced", b"").expect(200).text();
    assert_eq!(instance.invoke("raced", b"").text(), first);
}

#[test]
fn the_same_module_is_compiled_once() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let package = |name| Package::wasm(name, "markdown/markdown.wasm", "");
    instance.deploy(&package("compiled-first"));
    let began = Instant::now();
    instance.deploy(&package("compiled-again"));
    println!("the second deploy of one module took {:?}", began.elapsed());
    let calls = [
        ("compiled-first", Kind::Wasm),
        ("compiled-again", Kind::Wasm),
    ];
    for (name, _) in calls {
        assert!(
            instance
                .invoke(name, b"# Title")
                .expect(200)
                .text()
                .contains("<h1>")
        );
    }
}

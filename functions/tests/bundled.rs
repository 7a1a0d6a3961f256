// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bundled functions without Hearth: native ones are built as their manifests say and must answer their
//! `testdata/input.*` with `testdata/expected.*`, byte for byte. The answers of wasm functions come from programs that
//! nobody here wrote (functions/README.md names them) and are compared through Hearth, which has the engine.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{GenericImageView as _, ImageFormat, Rgba, RgbaImage};

/// Deploying stays a matter of moments.
const MODULE_BYTES_MAX: u64 = 512 * 1024;

struct Function {
    name: String,
    folder: PathBuf,
    manifest: toml::Table,
}

#[test]
fn every_function_has_a_manifest_with_its_name_a_real_input_and_an_expected_answer() {
    let functions = functions();
    assert!(functions.len() >= 7, "only {} functions", functions.len());
    for function in functions {
        assert_eq!(function.text("name"), Some(function.name.as_str()));
        assert_eq!(
            function.text("contract"),
            Some("stdio"),
            "{}",
            function.name
        );
        assert!(
            !function.input().is_empty(),
            "{}: empty input",
            function.name
        );
        assert!(
            !function.expected().is_empty(),
            "{}: empty answer",
            function.name
        );
    }
}

#[test]
fn native_functions_answer_their_input_byte_for_byte() {
    let mut compared = Vec::new();
    for function in functions()
        .into_iter()
        .filter(|function| !function.is_wasm())
    {
        let answer = function.answer(&function.input());
        assert!(answer.status.success(), "{}: {answer:?}", function.name);
        assert!(answer.stderr.is_empty(), "{}: {answer:?}", function.name);
        assert!(
            function.body(&answer.stdout) == function.expected(),
            "{}: the answer differs from testdata/expected.*",
            function.name
        );
        compared.push(function.name);
    }
    assert_eq!(compared, ["hello-cgi", "sha256", "thumbnail", "wordfreq"]);
}

#[test]
fn native_executables_are_static_so_that_they_run_on_the_base_static() {
    let mut looked_at = 0;
    for function in functions()
        .into_iter()
        .filter(|function| function.text("base") == Some("static"))
    {
        let program = fs::read(function.program()).expect("a readable program");
        assert!(
            program.starts_with(b"\x7fELF"),
            "{} is no executable",
            function.name
        );
        assert!(
            !has_interpreter(&program),
            "{} asks for a loader",
            function.name
        );
        looked_at += 1;
    }
    assert_eq!(looked_at, 2);
}

#[test]
fn wasm_modules_are_small_and_import_nothing_but_wasi_preview_1() {
    let mut modules: Vec<PathBuf> = functions()
        .iter()
        .filter(|function| function.is_wasm())
        .map(Function::program)
        .collect();
    modules.extend([
        root().join("tests/hostile/hostile.wasm"),
        root().join("tests/bench/echo.wasm"),
    ]);
    assert_eq!(modules.len(), 5);
    for module in modules {
        let bytes = fs::read(&module).expect("a readable module");
        assert!(
            bytes.starts_with(b"\0asm\x01\0\0\0"),
            "{} is no core module",
            module.display()
        );
        assert!(
            bytes.len() as u64 <= MODULE_BYTES_MAX,
            "{} has {} bytes",
            module.display(),
            bytes.len()
        );
        for import in imported_modules(&bytes) {
            assert_eq!(import, "wasi_snapshot_preview1", "in {}", module.display());
        }
    }
}

#[test]
fn thumbnail_says_in_one_line_why_it_refuses_what_is_no_whole_picture() {
    let thumbnail = function("thumbnail");
    let photograph = thumbnail.input();
    let too_large = png_header(16_000, 16_000);
    let monstrous = png_header(i32::MAX as u32, i32::MAX as u32);
    let cases: [(&str, &[u8]); 5] = [
        ("no body", b""),
        ("neither JPEG nor PNG", b"GIF89a, or so it says"),
        (
            "ends before its picture does",
            &photograph[..photograph.len() / 2],
        ),
        ("16000 × 16000 pixels", &too_large),
        ("exceeds limit", &monstrous),
    ];
    for (reason, input) in cases {
        let answer = thumbnail.answer(input);
        let stderr = String::from_utf8(answer.stderr).expect("text");
        assert_eq!(answer.status.code(), Some(1), "{reason}: {stderr}");
        assert!(answer.stdout.is_empty(), "{reason}: something on stdout");
        assert!(stderr.contains(reason), "{reason}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn thumbnail_puts_transparent_pictures_on_white_and_never_enlarges() {
    let mut input = Vec::new();
    RgbaImage::from_pixel(40, 30, Rgba([255, 0, 0, 0]))
        .write_to(&mut Cursor::new(&mut input), ImageFormat::Png)
        .expect("written to memory");
    let answer = function("thumbnail").answer(&input);
    assert!(answer.status.success(), "{answer:?}");
    let picture =
        image::load_from_memory_with_format(&answer.stdout, ImageFormat::Jpeg).expect("a JPEG");
    assert_eq!(picture.dimensions(), (40, 30));
    assert_eq!(picture.get_pixel(20, 15), Rgba([255; 4]));
}

#[test]
fn wordfreq_counts_nothing_in_an_empty_text() {
    let answer = function("wordfreq").answer(b"");
    assert!(answer.status.success(), "{answer:?}");
    assert!(answer.stdout.is_empty(), "{answer:?}");
}

impl Function {
    fn text(&self, key: &str) -> Option<&str> {
        self.manifest.get(key)?.as_str()
    }

    fn is_wasm(&self) -> bool {
        self.text("entry")
            .is_some_and(|entry| entry.ends_with(".wasm"))
    }

    fn input(&self) -> Vec<u8> {
        self.testdata("input")
    }

    fn expected(&self) -> Vec<u8> {
        self.testdata("expected")
    }

    /// The one file in testdata with this name and any ending.
    fn testdata(&self, stem: &str) -> Vec<u8> {
        let folder = self.folder.join("testdata");
        let found: Vec<PathBuf> = entries(&folder)
            .into_iter()
            .filter(|path| path.file_stem() == Some(stem.as_ref()))
            .collect();
        let [path] = found.as_slice() else {
            panic!("{} has {} files {stem}.*", folder.display(), found.len());
        };
        fs::read(path).expect("readable test data")
    }

    /// The file in the folder, else what the manifest's build command makes, where `hearth up` looks for it.
    fn program(&self) -> PathBuf {
        let entry = self.text("entry").expect("an entry");
        let file = self.folder.join(entry);
        if file.exists() {
            return file;
        }
        let build = self
            .text("build")
            .expect("an entry that exists, or a build command");
        let status = Command::new("sh")
            .args(["-c", build])
            .current_dir(&self.folder)
            .status()
            .expect("a shell");
        assert!(status.success(), "{build}: {status}");
        let outputs = entries(&root().join("target"))
            .into_iter()
            .map(|directory| directory.join("release").join(entry))
            .filter(|path| path.exists());
        outputs
            .max_by_key(|path| {
                path.metadata()
                    .and_then(|data| data.modified())
                    .expect("a time")
            })
            .expect("what the build command made")
    }

    /// One invocation: as Hearth makes it, but for the walls. On `/fn` where `testdata/path` says so.
    fn answer(&self, input: &[u8]) -> Output {
        let mut command = Command::new(self.program());
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        if let Some(variables) = self.manifest.get("env").and_then(toml::Value::as_table) {
            command.envs(
                variables
                    .iter()
                    .map(|(name, value)| (name, value.as_str().expect("text"))),
            );
        }
        if let Some(target) = self.cgi_target() {
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            command.envs([
                ("GATEWAY_INTERFACE", "CGI/1.1"),
                ("REQUEST_METHOD", "POST"),
                ("CONTENT_TYPE", "text/plain"),
            ]);
            command.envs([("PATH_INFO", path), ("QUERY_STRING", query)]);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program that can be executed");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        // A function may end before it has read everything.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("its end");
        writer.join().expect("a writer that ends");
        output
    }

    /// What stands behind `/fn/NAME` in `testdata/path`.
    fn cgi_target(&self) -> Option<String> {
        let path = fs::read_to_string(self.folder.join("testdata/path")).ok()?;
        let target = path
            .trim_end()
            .strip_prefix(&format!("/fn/{}", self.name))
            .expect("a path of this function");
        Some(target.to_owned())
    }

    fn body<'a>(&self, answer: &'a [u8]) -> &'a [u8] {
        if self.cgi_target().is_none() {
            return answer;
        }
        let end = answer
            .windows(2)
            .position(|pair| pair == b"\n\n")
            .expect("a header block");
        &answer[end + 2..]
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("functions/")
        .to_owned()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    paths
}

/// The direct children with a manifest, which is what `hearth up` deploys.
fn functions() -> Vec<Function> {
    entries(&root())
        .into_iter()
        .filter(|folder| folder.join("function.toml").exists())
        .map(|folder| Function {
            name: folder
                .file_name()
                .expect("a name")
                .to_str()
                .expect("a name")
                .to_owned(),
            manifest: fs::read_to_string(folder.join("function.toml"))
                .expect("a readable manifest")
                .parse()
                .expect("TOML"),
            folder,
        })
        .collect()
}

fn function(name: &str) -> Function {
    functions()
        .into_iter()
        .find(|function| function.name == name)
        .expect("a function of this name")
}

/// Whether a 64-bit little-endian ELF file has a program header PT_INTERP.
fn has_interpreter(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |offset: usize, bytes: usize| {
        program[offset..offset + bytes]
            .iter()
            .rev()
            .fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte))
    };
    let (table, entry_bytes, entries) = (number(32, 8), number(54, 2), number(56, 2));
    (0..entries).any(|index| number(table + index * entry_bytes, 4) == PT_INTERP as usize)
}

/// The module names of a core module's import section.
fn imported_modules(module: &[u8]) -> Vec<String> {
    const IMPORT_SECTION: u8 = 2;
    let mut at = 8;
    while at < module.len() {
        let id = module[at];
        at += 1;
        let bytes = leb128(module, &mut at);
        if id == IMPORT_SECTION {
            return imports(module, at);
        }
        at += bytes;
    }
    Vec::new()
}

/// Functions only: a command that imports a memory or a table is none.
fn imports(module: &[u8], mut at: usize) -> Vec<String> {
    let mut modules = Vec::new();
    for _ in 0..leb128(module, &mut at) {
        modules.push(name(module, &mut at));
        name(module, &mut at);
        assert_eq!(module[at], 0, "an import that is no function");
        at += 1;
        leb128(module, &mut at);
    }
    modules
}

fn name(module: &[u8], at: &mut usize) -> String {
    let bytes = leb128(module, at);
    *at += bytes;
    String::from_utf8(module[*at - bytes..*at].to_vec()).expect("a name in UTF-8")
}

fn leb128(module: &[u8], at: &mut usize) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = module[*at];
        *at += 1;
        value |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
        shift += 7;
    }
}

/// A PNG whose header names this size; nothing of the picture follows.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]); // 8 bits, RGB, the only methods that there are
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&header);
    file.extend(crc32(&header).to_be_bytes());
    file.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 {
                sum >> 1 ^ 0xEDB8_8320
            } else {
                sum >> 1
            }
        })
    });
    !sum
}

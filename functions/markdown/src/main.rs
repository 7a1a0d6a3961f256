// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CommonMark on stdin → an HTML fragment on stdout.
//!
//! No extension is on, so that any CommonMark document gives the reference implementation's HTML. Raw HTML in the
//! document is passed through, as CommonMark says: whoever shows the result to others has to sanitise it.

use std::io::{self, BufWriter, Read as _, Write as _};
use std::process::ExitCode;

use pulldown_cmark::{Options, Parser, html};

fn main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("markdown: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The whole document is read first because a link's target may stand in its last line. Text that is not UTF-8 is an
/// error, not replaced: the answer would be wrong without anyone noticing.
fn answer() -> io::Result<()> {
    let mut document = String::new();
    io::stdin().lock().read_to_string(&mut document)?;
    let mut output = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    html::write_html_io(&mut output, Parser::new_ext(&document, Options::empty()))?;
    output.flush()
}

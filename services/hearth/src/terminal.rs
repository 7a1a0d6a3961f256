// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What commands print: results on stdout, everything else on stderr. A reader that went away (`hearth ls | head`) is no
//! error.

use std::io::{self, Write};

/// One line on stdout.
pub(crate) fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Bytes on stdout, as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    drop(out.write_all(bytes).and_then(|()| out.flush()));
}

/// One line on stderr.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// The widest table, in columns.
const TABLE_COLUMNS_MAX: usize = 100;

/// What is between two columns.
const GAP: &str = "  ";

/// Rows under a header, each column as wide as its widest cell; a line that is too wide is cut, with a mark.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max();
        let title = header.get(column).map_or(0, |title| title.chars().count());
        widest.unwrap_or(0).max(title)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cut(padded.join(GAP).trim_end())
    };
    let mut lines = vec![print(&mut header.iter().copied())];
    for row in rows {
        lines.push(print(&mut row.iter().map(String::as_str)));
    }
    lines.join("\n")
}

/// A line of at most [`TABLE_COLUMNS_MAX`] columns without control characters: cells hold what strangers wrote.
fn cut(line: &str) -> String {
    let clean = |character: char| {
        if character.is_control() {
            '\u{fffd}'
        } else {
            character
        }
    };
    if line.chars().count() <= TABLE_COLUMNS_MAX {
        return line.chars().map(clean).collect();
    }
    let kept = line.chars().take(TABLE_COLUMNS_MAX - 1);
    kept.map(clean).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_at_most_100_columns_wide_and_aligned() {
        let rows = vec![
            vec!["a".to_owned(), "x".repeat(300)],
            vec!["longer".to_owned(), "y".to_owned()],
        ];
        let text = table(&["NAME", "WHAT"], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "NAME    WHAT");
        assert_eq!(lines[2], "longer  y");
        assert!(lines.iter().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn a_cell_cannot_send_escape_sequences_to_the_terminal() {
        let text = table(&["NAME"], &[vec!["\u{1b}[2J".to_owned()]]);
        assert!(!text.contains('\u{1b}'));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A function's stderr, cut into lines and bounded. Reading never stops, whatever is written.

use std::time::Instant;

use crate::LogLine;

/// The longest kept line; the rest of it is counted and dropped. In bytes.
pub(crate) const LOG_LINE_BYTES_MAX: usize = 8 * 1024;

/// A kept line costs about this much beside its text, in memory and in the history: so many lines are kept at most, that
/// short ones cannot take several times the limit. In bytes.
const LOG_BYTES_PER_LINE_MIN: u64 = 64;

/// How many lines an outcome quotes.
const TAIL_LINES: usize = 5;

/// Collects one invocation's log.
#[derive(Debug)]
pub(crate) struct LogCollector {
    begun: Instant,
    budget_bytes: u64,
    lines_max: usize,
    lines: Vec<LogLine>,
    partial: Vec<u8>,
    partial_cut: bool,
    dropped_bytes: u64,
}

impl LogCollector {
    pub(crate) fn new(begun: Instant, limit_bytes: u64) -> Self {
        Self {
            begun,
            budget_bytes: limit_bytes,
            lines_max: usize::try_from(limit_bytes / LOG_BYTES_PER_LINE_MIN).unwrap_or(usize::MAX),
            lines: Vec::new(),
            partial: Vec::new(),
            partial_cut: false,
            dropped_bytes: 0,
        }
    }

    /// Takes what was written, in any pieces.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            match piece.split_last() {
                Some((b'\n', text)) => {
                    self.extend(text);
                    self.end_line();
                }
                _ => self.extend(piece),
            }
        }
    }

    /// Ends the last line and gives everything, with the count of dropped bytes.
    pub(crate) fn finish(&mut self) -> (Vec<LogLine>, u64) {
        if !self.partial.is_empty() || self.partial_cut {
            self.end_line();
        }
        (std::mem::take(&mut self.lines), self.dropped_bytes)
    }

    /// Whether something was dropped.
    pub(crate) fn overflowed(&self) -> bool {
        self.dropped_bytes > 0
    }

    /// The last lines, for the error's evidence.
    pub(crate) fn tail(&self) -> Vec<String> {
        let partial = (!self.partial.is_empty()).then(|| printable(&self.partial));
        let skip = (self.lines.len() + usize::from(partial.is_some())).saturating_sub(TAIL_LINES);
        self.lines
            .iter()
            .map(|line| line.text.clone())
            .chain(partial)
            .skip(skip)
            .collect()
    }

    fn extend(&mut self, text: &[u8]) {
        let budget = usize::try_from(self.budget_bytes).unwrap_or(usize::MAX);
        let room = (LOG_LINE_BYTES_MAX - self.partial.len()).min(budget);
        let kept = text.len().min(room);
        self.partial.extend_from_slice(&text[..kept]);
        self.budget_bytes -= kept as u64;
        self.dropped_bytes += (text.len() - kept) as u64;
        self.partial_cut |= kept < text.len();
    }

    fn end_line(&mut self) {
        // The newline counts too: else a flood of empty lines would be free.
        let is_past_bytes = self.budget_bytes == 0 && self.partial.is_empty();
        if is_past_bytes || self.lines_max <= self.lines.len() {
            self.dropped_bytes += self.partial.len() as u64 + 1;
            self.partial.clear();
            self.partial_cut = false;
            return;
        }
        self.budget_bytes = self.budget_bytes.saturating_sub(1);
        let at_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let text = printable(&self.partial);
        self.lines.push(LogLine {
            at_ms,
            text,
            cut: std::mem::take(&mut self.partial_cut),
        });
        self.partial.clear();
    }
}

/// A log may be shown on a terminal: what would drive it is escaped, and invalid UTF-8 replaced.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        if character.is_control() && character != '\t' {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(limit: u64, pieces: &[&[u8]]) -> (Vec<LogLine>, u64) {
        let mut log = LogCollector::new(Instant::now(), limit);
        for piece in pieces {
            log.push(piece);
        }
        log.finish()
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let (lines, dropped) = collect(1024, &[b"on", b"e\ntwo\n", b"three"]);
        assert_eq!((texts(&lines), dropped), (vec!["one", "two", "three"], 0));
    }

    #[test]
    fn lines_after_a_line_of_a_mebibyte_still_arrive() {
        let long = vec![b'x'; 1024 * 1024];
        let (lines, dropped) = collect(64 * 1024, &[&long, b"\nafter\n"]);
        assert_eq!(
            (lines.len(), lines[0].cut, lines[1].text.as_str()),
            (2, true, "after")
        );
        assert_eq!(dropped, (long.len() - LOG_LINE_BYTES_MAX) as u64);
    }

    #[test]
    fn a_flood_of_empty_lines_is_bounded() {
        let (lines, dropped) = collect(6400, &[&[b'\n'; 1000]]);
        assert_eq!((lines.len(), dropped), (100, 900));
    }

    #[test]
    fn what_would_drive_a_terminal_is_escaped() {
        let (lines, _) = collect(1024, &[b"\x1b[31mred\xff\0\n"]);
        assert_eq!(lines[0].text, "\\u{1b}[31mred\u{fffd}\\u{0}");
    }

    #[test]
    fn the_tail_quotes_the_last_lines_and_an_unended_one() {
        let mut log = LogCollector::new(Instant::now(), 1024);
        log.push(b"1\n2\n3\n4\n5\n6");
        assert_eq!(log.tail(), ["2", "3", "4", "5", "6"]);
    }
}

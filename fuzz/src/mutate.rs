// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Changes inputs at random: the same ones from the same beginning, so that a failure comes again.

/// The longest input that is made, in bytes: one packet.
pub const INPUT_BYTES_MAX: usize = 64 * 1024;

/// The most changes of one input.
const CHANGES_MAX: usize = 5;

/// Numbers at which something ends, in as many bytes as they need, least significant first.
const BORDERS: [&[u8]; 10] = [
    &[0],
    &[1],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff, 0x7f],
    &[0, 0x80],
    &[0xff, 0xff],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

/// A source of changed inputs.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// Each beginning gives another sequence.
    #[must_use]
    pub fn new(beginning: u64) -> Self {
        Self { state: beginning }
    }

    /// Knuth's MMIX generator; its lower bits are not used.
    fn below(&mut self, limit: usize) -> usize {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.state >> 33).unwrap_or(0) % limit.max(1)
    }

    /// A range within `length`, often a short one.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let reach = if self.below(2) == 0 { 8 } else { length };
        let end = length.min(start + self.below(reach + 1));
        start..end
    }

    /// One of the seeds, changed. At least one seed is needed, else there is nothing to change.
    #[must_use]
    pub fn next(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.pick(seeds);
        for _ in 0..=self.below(CHANGES_MAX) {
            self.change(&mut input, seeds);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn pick(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let index = self.below(seeds.len());
        seeds.get(index).cloned().unwrap_or_default()
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let place = self.below(input.len());
        match self.below(7) {
            0 => {
                let bit = self.below(8);
                if let Some(byte) = input.get_mut(place) {
                    *byte ^= 1 << bit;
                }
            }
            1 => {
                let border = BORDERS[self.below(BORDERS.len())];
                let end = input.len().min(place + border.len());
                input.splice(place..end, border.iter().copied());
            }
            2 => input.truncate(place),
            3 => drop(input.drain(self.range(input.len()))),
            4 => {
                let piece = input[self.range(input.len())].to_vec();
                input.splice(place..place, piece);
            }
            5 => {
                let other = self.pick(seeds);
                let piece = other[self.range(other.len())].to_vec();
                input.splice(place..place, piece);
            }
            _ => {
                let border = BORDERS[self.below(BORDERS.len())];
                input.splice(place..place, border.iter().copied());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_beginning_gives_the_same_inputs_and_another_gives_others() {
        let seeds = [b"one seed".to_vec(), b"another".to_vec()];
        let inputs = |beginning| {
            let mut mutator = Mutator::new(beginning);
            (0..100).map(|_| mutator.next(&seeds)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        let changed = inputs(1)
            .iter()
            .filter(|input| !seeds.contains(input))
            .count();
        assert!(80 < changed, "{changed}");
    }

    #[test]
    fn no_input_is_longer_than_the_limit() {
        let seeds = [vec![0; INPUT_BYTES_MAX], Vec::new()];
        let mut mutator = Mutator::new(1);
        for _ in 0..200 {
            assert!(mutator.next(&seeds).len() <= INPUT_BYTES_MAX);
        }
    }
}

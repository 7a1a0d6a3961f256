// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Renders `testdata/input.jpg`: a mountain lake in the evening, 1600 × 1200. A photograph would have a photographer;
//! this has the detail of one (noise at every scale, soft and hard edges) and belongs to nobody.
//!
//! `cargo run --release -p thumbnail --example render_input > thumbnail/testdata/input.jpg`

use std::error::Error;
use std::io::{self, Write as _};

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

const WIDTH: u32 = 1600;
const HEIGHT: u32 = 1200;
const JPEG_QUALITY: u8 = 80;

/// Where the lake begins, in fractions of the height.
const SHORE: f32 = 0.66;

/// Five ranges, the farthest first.
const RANGES: [Range; 5] = [
    Range {
        seed: 11,
        base: 0.36,
        height: 0.30,
        roughness: 2.6,
        haze: 0.62,
        tint: [0.36, 0.38, 0.46],
    },
    Range {
        seed: 23,
        base: 0.44,
        height: 0.24,
        roughness: 3.4,
        haze: 0.44,
        tint: [0.30, 0.31, 0.36],
    },
    Range {
        seed: 37,
        base: 0.52,
        height: 0.19,
        roughness: 4.2,
        haze: 0.28,
        tint: [0.22, 0.26, 0.25],
    },
    Range {
        seed: 53,
        base: 0.58,
        height: 0.13,
        roughness: 6.0,
        haze: 0.14,
        tint: [0.13, 0.20, 0.14],
    },
    Range {
        seed: 71,
        base: 0.625,
        height: 0.07,
        roughness: 11.0,
        haze: 0.06,
        tint: [0.06, 0.11, 0.07],
    },
];

struct Range {
    seed: u32,
    base: f32,
    height: f32,
    roughness: f32,
    haze: f32,
    tint: Colour,
}

type Colour = [f32; 3];

fn main() -> Result<(), Box<dyn Error>> {
    let picture = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let (u, v) = (x as f32 / WIDTH as f32, y as f32 / HEIGHT as f32);
        let grain = (lattice(x, y, 997) - 0.5) * 0.025;
        let colour = if v < SHORE {
            land_and_sky(u, v)
        } else {
            lake(u, v)
        };
        Rgb(colour.map(|channel| to_byte(channel + grain)))
    });
    let mut output = Vec::new();
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut output, JPEG_QUALITY))?;
    io::stdout().lock().write_all(&output)?;
    Ok(())
}

fn land_and_sky(u: f32, v: f32) -> Colour {
    let mut colour = sky(u, v);
    for range in &RANGES {
        let ridge = ridge_height(range, u);
        if v < ridge {
            continue;
        }
        let depth = v - ridge;
        let (across, down) = (u * 26.0 * range.roughness.sqrt(), v * 60.0);
        let rock = fractal(across + down * 0.3, down, range.seed + 5, 6);
        // Light comes from the right: where the rock falls to the right, it is lit.
        let slope = rock - fractal(across + down * 0.3 + 0.12, down - 0.05, range.seed + 5, 6);
        let light = 0.35 + 0.6 * rock + (slope * 4.5).clamp(-0.3, 0.7);
        let snow = smooth(0.09, 0.0, depth) * smooth(0.42, 0.30, v) * smooth(0.40, 0.55, rock);
        let surface = mix(scale(range.tint, light * 1.5), [0.95, 0.94, 0.97], snow);
        colour = mix(
            surface,
            [0.80, 0.63, 0.56],
            range.haze * (1.0 - depth * 1.2).clamp(0.3, 1.0),
        );
    }
    colour
}

fn sky(u: f32, v: f32) -> Colour {
    let height = (v / 0.5).clamp(0.0, 1.0);
    let air = mix([0.16, 0.25, 0.47], [0.98, 0.72, 0.48], height.powf(1.4));
    let (dx, dy) = ((u - 0.68) * 1.333, v - 0.30);
    let distance = (dx * dx + dy * dy).sqrt();
    let glow = (-distance * 5.0).exp();
    let sun = smooth(0.040, 0.034, distance);
    let cloud = smooth(0.48, 0.78, fractal(u * 5.0, v * 14.0, 3, 7)) * (1.0 - 0.5 * height);
    let lit = mix([0.62, 0.52, 0.58], [1.0, 0.80, 0.62], glow.sqrt());
    let with_glow = mix(air, [1.0, 0.87, 0.62], glow * 0.8);
    mix(mix(with_glow, [1.0, 0.97, 0.88], sun), lit, cloud * 0.85)
}

/// The land upside down, drawn apart by ripples that widen towards the viewer.
fn lake(u: f32, v: f32) -> Colour {
    let depth = (v - SHORE) / (1.0 - SHORE);
    let ripple = fractal(u * 30.0 / (0.2 + depth), depth.sqrt() * 160.0, 91, 4) - 0.5;
    let mirrored = (SHORE - (v - SHORE) * 1.25 + ripple * 0.05 * (0.3 + depth)).clamp(0.0, SHORE);
    let reflection = land_and_sky(u + ripple * 0.012, mirrored);
    let water = scale(
        mix(reflection, [0.07, 0.13, 0.19], 0.25 + 0.40 * depth),
        0.92 + ripple * 0.35,
    );
    // Pebbles under the shallow water at the viewer's feet.
    let pebbles = fractal(u * 110.0, v * 150.0, 131, 3);
    mix(
        water,
        scale([0.42, 0.37, 0.31], 0.4 + pebbles),
        smooth(0.80, 1.05, depth) * 0.75,
    )
}

fn ridge_height(range: &Range, u: f32) -> f32 {
    let shape = fractal(u * range.roughness, 0.5, range.seed, 8);
    range.base + range.height * (0.5 - shape)
}

/// Sum of `octaves` noises, each twice as fine and half as strong as the one before: 0 to 1.
fn fractal(x: f32, y: f32, seed: u32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut frequency) = (0.0, 0.5, 0.0, 1.0);
    for octave in 0..octaves {
        sum += weight * noise(x * frequency, y * frequency, seed + octave * 101);
        total += weight;
        weight *= 0.5;
        frequency *= 2.0;
    }
    sum / total
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "floor of a small number; only the hash sees it"
)]
fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (fade(x - left), fade(y - top));
    let (column, row) = (left as i32 as u32, top as i32 as u32);
    let above = lerp(
        lattice(column, row, seed),
        lattice(column.wrapping_add(1), row, seed),
        fx,
    );
    let next = row.wrapping_add(1);
    let below = lerp(
        lattice(column, next, seed),
        lattice(column.wrapping_add(1), next, seed),
        fx,
    );
    lerp(above, below, fy)
}

/// A value from 0 to 1 that depends on nothing but the arguments.
fn lattice(x: u32, y: u32, seed: u32) -> f32 {
    let mut hash =
        x.wrapping_mul(0x9E37_79B1) ^ y.wrapping_mul(0x85EB_CA77) ^ seed.wrapping_mul(0xC2B2_AE3D);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297A_2D39);
    (hash >> 8) as f32 / (1 << 24) as f32
}

fn fade(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

/// 0 at `from`, 1 at `to`, whichever is the larger.
fn smooth(from: f32, to: f32, value: f32) -> f32 {
    fade(((value - from) / (to - from)).clamp(0.0, 1.0))
}

fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

fn mix(a: Colour, b: Colour, t: f32) -> Colour {
    std::array::from_fn(|channel| lerp(a[channel], b[channel], t))
}

fn scale(colour: Colour, factor: f32) -> Colour {
    colour.map(|channel| channel * factor)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=255 first"
)]
fn to_byte(channel: f32) -> u8 {
    (channel * 255.0).round().clamp(0.0, 255.0) as u8
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! JPEG or PNG on stdin → a JPEG that fits 256 × 256 on stdout.
//!
//! The picture keeps its proportions, is turned the way its EXIF orientation says, is never enlarged, and stands on
//! white where it is transparent. What the decoder may allocate is limited before it sees the first byte: a picture of
//! a few kilobytes can name any size in its header.

use std::fmt;
use std::io::{self, Cursor, Read as _, Write as _};
use std::process::ExitCode;

use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage,
};

/// The thumbnail's longest side.
const SIDE_PIXELS_MAX: u32 = 256;

/// 24 megapixels: what a telephone's camera makes.
const PIXELS_MAX: u64 = 24_000_000;

/// No side longer than this, whatever the other one is.
const INPUT_SIDE_PIXELS_MAX: u32 = 16_384;

/// For the decoder: [`PIXELS_MAX`] of four bytes each, and as much again for progressive JPEG's coefficients.
const DECODER_BYTES_MAX: u64 = 2 * 4 * PIXELS_MAX;

/// The manifest's request limit, and one byte to see that there is more.
const INPUT_BYTES_MAX: u64 = 6 * 1024 * 1024;

/// Small files matter more than what no eye sees at this size.
const JPEG_QUALITY: u8 = 82;

fn main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("thumbnail: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), ThumbnailError> {
    let input = read_input()?;
    let (picture, orientation) = decode(&input)?;
    drop(input); // a quarter of the memory limit is not needed any more
    let mut small = on_white(shrink(picture));
    small.apply_orientation(orientation);
    write_output(&small)
}

fn read_input() -> Result<Vec<u8>, ThumbnailError> {
    let mut input = Vec::new();
    io::stdin()
        .lock()
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut input)
        .map_err(ThumbnailError::Read)?;
    match input.len() as u64 {
        0 => Err(ThumbnailError::Empty),
        count if count > INPUT_BYTES_MAX => Err(ThumbnailError::TooLong),
        _ => Ok(input),
    }
}

/// Looks at the header before it decodes anything.
fn decode(input: &[u8]) -> Result<(DynamicImage, Orientation), ThumbnailError> {
    let mut reader = ImageReader::new(Cursor::new(input))
        .with_guessed_format()
        .map_err(ThumbnailError::Read)?;
    match reader.format() {
        Some(ImageFormat::Png) => {}
        Some(ImageFormat::Jpeg) if is_whole_jpeg(input) => {}
        Some(ImageFormat::Jpeg) => return Err(ThumbnailError::CutOff),
        _ => return Err(ThumbnailError::NotAPicture),
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(INPUT_SIDE_PIXELS_MAX);
    limits.max_image_height = Some(INPUT_SIDE_PIXELS_MAX);
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(ThumbnailError::Decode)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(ThumbnailError::TooManyPixels { width, height });
    }
    // A broken EXIF block does not make the picture unreadable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder).map_err(ThumbnailError::Decode)?;
    Ok((picture, orientation))
}

/// Whether an end marker follows the last scan. The decoder fills what is missing with grey and reports no error.
/// Neither marker can occur inside a scan, where every 0xFF is followed by 0x00 or a restart marker.
fn is_whole_jpeg(input: &[u8]) -> bool {
    let last = |marker: [u8; 2]| input.windows(2).rposition(|pair| pair == marker);
    last([0xFF, 0xDA]) < last([0xFF, 0xD9])
}

fn shrink(picture: DynamicImage) -> DynamicImage {
    if picture.width() <= SIDE_PIXELS_MAX && picture.height() <= SIDE_PIXELS_MAX {
        return picture;
    }
    picture.thumbnail(SIDE_PIXELS_MAX, SIDE_PIXELS_MAX)
}

/// JPEG has no transparency.
fn on_white(picture: DynamicImage) -> DynamicImage {
    if !picture.color().has_alpha() {
        return DynamicImage::ImageRgb8(picture.into_rgb8());
    }
    let picture = picture.into_rgba8();
    let blended = RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue, alpha] = picture.get_pixel(x, y).0;
        Rgb([red, green, blue].map(|channel| over_white(channel, alpha)))
    });
    DynamicImage::ImageRgb8(blended)
}

fn over_white(channel: u8, alpha: u8) -> u8 {
    let (channel, alpha) = (u32::from(channel), u32::from(alpha));
    let sum = channel * alpha + 255 * (255 - alpha) + 127; // 127 rounds to nearest
    u8::try_from(sum / 255).unwrap_or(u8::MAX)
}

/// Encoded whole before the first byte is written: a failure must not leave half a picture.
fn write_output(picture: &DynamicImage) -> Result<(), ThumbnailError> {
    let mut output = Vec::new();
    picture
        .write_with_encoder(JpegEncoder::new_with_quality(&mut output, JPEG_QUALITY))
        .map_err(ThumbnailError::Encode)?;
    io::stdout()
        .lock()
        .write_all(&output)
        .map_err(ThumbnailError::Write)
}

/// Why there is no thumbnail; the text goes to the caller.
#[derive(Debug)]
enum ThumbnailError {
    Read(io::Error),
    Empty,
    TooLong,
    NotAPicture,
    CutOff,
    TooManyPixels { width: u32, height: u32 },
    Decode(ImageError),
    Encode(ImageError),
    Write(io::Error),
}

impl fmt::Display for ThumbnailError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(formatter, "cannot read the picture: {error}"),
            Self::Empty => write!(formatter, "the request has no body: send a JPEG or PNG"),
            Self::TooLong => write!(
                formatter,
                "the picture has more than {INPUT_BYTES_MAX} bytes"
            ),
            Self::NotAPicture => write!(formatter, "this is neither JPEG nor PNG"),
            Self::CutOff => write!(formatter, "the JPEG ends before its picture does"),
            Self::TooManyPixels { width, height } => {
                write!(
                    formatter,
                    "the picture has {width} × {height} pixels, more than {PIXELS_MAX}"
                )
            }
            Self::Decode(error) => write!(formatter, "cannot decode the picture: {error}"),
            Self::Encode(error) => write!(formatter, "cannot encode the thumbnail: {error}"),
            Self::Write(error) => write!(formatter, "cannot write the thumbnail: {error}"),
        }
    }
}

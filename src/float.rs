//! Floats as Python's `repr` writes them, in keys and in metadata.

use std::io::Write;

/// The shortest digits that are read as the same float: `1.0`, `0.1`, `1e+16`, `1e-05`, `nan`, `-inf`.
pub(crate) struct Repr {
    bytes: [u8; Repr::ROOM],
    len: usize,
}

impl Repr {
    /// `-2.2250738585072014e-308` is as long as they get.
    const ROOM: usize = 32;

    /// Rust's `Debug` finds the same digits, and turns to exponents at the same numbers, but spells `nan` and
    /// exponents in another way: without a plus, and with one digit where that does.
    pub(crate) fn new(float: f64) -> Self {
        let mut bytes = [0; Repr::ROOM];
        let rest = match float.is_nan() {
            true => put(&mut bytes, format_args!("nan")),
            false => put(&mut bytes, format_args!("{float:?}")),
        };
        let mut len = Repr::ROOM - rest;
        if let Some(at) = bytes[..len].iter().position(|byte| *byte == b'e') {
            let exponent = bytes[at + 1..len].iter().filter(|byte| byte.is_ascii_digit());
            let exponent = exponent.fold(0, |exponent, digit| 10 * exponent + u32::from(digit - b'0'));
            let sign = if bytes[at + 1] == b'-' { '-' } else { '+' };
            len = Repr::ROOM - put(&mut bytes[at + 1..], format_args!("{sign}{exponent:02}"));
        }
        Repr { bytes, len }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes text to the beginning of `room`, which is always enough, and returns how much is left.
fn put(mut room: &mut [u8], text: std::fmt::Arguments<'_>) -> usize {
    let written = room.write_fmt(text);
    debug_assert!(written.is_ok());
    room.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_as_python_writes_them() {
        // Each as Python 3.11 printed it.
        for (float, repr) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1.0 / 3.0, "0.3333333333333333"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1_471_113_698.761_27, "1471113698.76127"),
            (1_471_113_698.0, "1471113698.0"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.5e16, "1.5e+16"),
            (1e22, "1e+22"),
            (1e100, "1e+100"),
            (-1.25e-7, "-1.25e-07"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1e-05"),
            (0.000_099_999_999_999_999_99, "9.999999999999999e-05"),
            (5e-324, "5e-324"),
            (-2.225_073_858_507_201_4e-308, "-2.2250738585072014e-308"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "nan"),
            (-f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(std::str::from_utf8(Repr::new(float).as_bytes()), Ok(repr));
        }
    }
}

//! Floats as Python's `repr` writes them, in keys and in metadata.

use std::fmt;
use std::io::Write;

/// The shortest digits that are read as the same float: `1.0`, `0.1`, `1e+16`, `1e-05`, `nan`, `-inf`.
pub(crate) struct Repr {
    bytes: [u8; Repr::ROOM],
    len: usize,
}

impl Repr {
    /// `-2.2250738585072014e-308` is as long as they get.
    const ROOM: usize = 32;

    pub(crate) fn new(float: f64) -> Self {
        // Rust's `Debug` turns to exponents at the same numbers, and finds as few digits.
        let shortest = Repr::of(format_args!("{float:?}"));
        if !float.is_finite() {
            return if float.is_nan() { Repr::of(format_args!("nan")) } else { shortest };
        }
        // Of two texts as short and as near it takes the larger, where Python takes the even one, as does `{:.n}`.
        let (mantissa, exponent) = shortest.text().split_once('e').unwrap_or((shortest.text(), ""));
        let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        let even = match exponent {
            "" => Repr::of(format_args!("{float:.decimals$}")),
            _ => Repr::of(format_args!("{float:.decimals$e}")),
        };
        let repr = if even.text().parse() == Ok(float) { even } else { shortest };
        // Python's exponents have a sign and two digits at least.
        match repr.text().split_once('e') {
            None => repr,
            Some((mantissa, exponent)) => match exponent.strip_prefix('-') {
                Some(exponent) => Repr::of(format_args!("{mantissa}e-{exponent:0>2}")),
                None => Repr::of(format_args!("{mantissa}e+{exponent:0>2}")),
            },
        }
    }

    /// Text that fits.
    fn of(text: fmt::Arguments<'_>) -> Self {
        let mut bytes = [0; Repr::ROOM];
        let mut rest = &mut bytes[..];
        let written = rest.write_fmt(text);
        debug_assert!(written.is_ok());
        let len = Repr::ROOM - rest.len();
        Repr { bytes, len }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::excessive_precision)] // What is exactly between two texts has one digit more than needed.
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
            // Exactly between two texts as short.
            (1_737_525_290_325_455.25, "1737525290325455.2"),
            (1_737_525_290_325_455.75, "1737525290325455.8"),
            (71_057_711_845_183.625, "71057711845183.62"),
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

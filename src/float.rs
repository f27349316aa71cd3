//! Formats floats as Python's `repr` does, for keys and metadata.

use std::fmt;
use std::io::Write;

/// The shortest decimal string that parses back to the same float, in Python's notation.
///
/// For example `1.0`, `0.1`, `1e+16`, `1e-05`, `nan` and `-inf`. It lives on the stack.
pub(crate) struct Repr {
    bytes: [u8; Repr::CAPACITY],
    len: usize,
}

impl Repr {
    /// Fits the longest output, such as `-2.2250738585072014e-308` (24 bytes).
    const CAPACITY: usize = 32;

    pub(crate) fn new(float: f64) -> Self {
        // Rust's `Debug` switches to exponents at the same magnitudes as Python and also finds the
        // fewest digits.
        let shortest = Repr::format(format_args!("{float:?}"));
        if !float.is_finite() {
            return if float.is_nan() { Repr::format(format_args!("nan")) } else { shortest };
        }
        // If two strings are equally short and equally close, `Debug` picks the larger one. Python
        // picks the one with the even last digit, and so does `{:.n}`.
        let (mantissa, exponent) = shortest.as_str().split_once('e').unwrap_or((shortest.as_str(), ""));
        let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        let even = match exponent {
            "" => Repr::format(format_args!("{float:.decimals$}")),
            _ => Repr::format(format_args!("{float:.decimals$e}")),
        };
        let repr = if even.as_str().parse() == Ok(float) { even } else { shortest };
        // Python writes exponents with a sign and at least two digits.
        match repr.as_str().split_once('e') {
            None => repr,
            Some((mantissa, exponent)) => match exponent.strip_prefix('-') {
                Some(exponent) => Repr::format(format_args!("{mantissa}e-{exponent:0>2}")),
                None => Repr::format(format_args!("{mantissa}e+{exponent:0>2}")),
            },
        }
    }

    /// Formats `arguments`, whose output must fit into `CAPACITY` bytes.
    fn format(arguments: fmt::Arguments<'_>) -> Self {
        let mut bytes = [0; Repr::CAPACITY];
        let mut rest = &mut bytes[..];
        let written = rest.write_fmt(arguments);
        debug_assert!(written.is_ok());
        let len = Repr::CAPACITY - rest.len();
        Repr { bytes, len }
    }

    fn as_str(&self) -> &str {
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
    #[allow(clippy::excessive_precision)] // The ties below are written with one digit more than needed.
    fn matches_python_repr() {
        // The expected strings were printed by Python 3.11.
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
            // Ties: exactly halfway between two strings of the same length.
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

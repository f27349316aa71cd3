//! Writes commands and their arguments in RESP.

use std::time::Duration;

/// Writes the head of a command of so many arguments, its name included.
#[inline]
pub(crate) fn command(out: &mut Vec<u8>, name: &str, arguments: usize) {
    header(out, b'*', arguments);
    argument(out, name.as_bytes());
}

/// Writes one argument.
#[inline]
pub(crate) fn argument(out: &mut Vec<u8>, bytes: &[u8]) {
    argument_after(out, b"$00\r\n", bytes);
}

/// Writes one argument and the constant that comes before it: `head`, which ends with the head of an argument of two
/// digits. Most have one or two, and are then written in one piece.
#[inline(always)]
pub(crate) fn argument_after<const N: usize>(out: &mut Vec<u8>, head: &[u8; N], bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(length @ 10..100) => {
            let mut head = *head;
            (head[N - 4], head[N - 3]) = (b'0' + length / 10, b'0' + length % 10);
            out.extend_from_slice(&head);
        }
        Ok(length @ 0..10) => {
            let mut head = *head;
            (head[N - 4], head[N - 3], head[N - 2]) = (b'0' + length, b'\r', b'\n');
            out.extend_from_slice(&head[..N - 1]);
        }
        _ => {
            out.extend_from_slice(&head[..N - 5]);
            header(out, b'$', bytes.len());
        }
    }
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Writes a type and a length.
pub(crate) fn header(out: &mut Vec<u8>, kind: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length @ 0..10) => out.extend_from_slice(&[kind, b'0' + length, b'\r', b'\n']),
        _ => {
            out.push(kind);
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

pub(crate) fn number(out: &mut Vec<u8>, number: u64) {
    argument(out, itoa::Buffer::new().format(number).as_bytes());
}

/// A TTL in milliseconds, as servers take it: at least one, at most what they can add to the time of day.
pub(crate) fn millis(ttl: Duration) -> u64 {
    const TEN_THOUSAND_YEARS: u64 = 315_360_000_000_000;
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).clamp(1, TEN_THOUSAND_YEARS)
}

/// Writes one argument that comes in two parts.
pub(crate) fn joined(out: &mut Vec<u8>, first: &[u8], second: &[u8]) {
    header(out, b'$', first.len() + second.len());
    out.extend_from_slice(first);
    out.extend_from_slice(second);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn pairs<'e>(out: &mut Vec<u8>, entries: impl Iterator<Item = (&'e [u8], &'e [u8])>) {
    for (name, entry) in entries {
        argument_after(out, b"$00\r\n", name);
        argument(out, entry);
    }
}

/// Writes the head of a script that is told so many arguments, and its keys, each with what stands behind it.
pub(crate) fn eval(out: &mut Vec<u8>, script: &[u8], keys: &[(&[u8], &[u8])], arguments: usize) {
    call_script(out, "EVAL", script, keys, arguments);
}

/// The same by `EVAL` and a text, or by `EVALSHA` and a digest.
pub(crate) fn call_script(out: &mut Vec<u8>, verb: &str, script: &[u8], keys: &[(&[u8], &[u8])], arguments: usize) {
    command(out, verb, 3 + keys.len() + arguments);
    argument(out, script);
    number(out, keys.len() as u64);
    keys.iter().for_each(|(key, suffix)| joined(out, key, suffix));
}

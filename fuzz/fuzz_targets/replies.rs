//! The reply reader: any bytes, cut anywhere, give the same tokens as the bytes in one piece, and never panic.
#![no_main]

use dogpile::engine::replies::{Fed, Malformed, Replies};
use libfuzzer_sys::fuzz_target;

/// All tokens as text, and how it ended: nothing but the pieces' sizes may differ.
fn read(
    input: &[u8],
    replies: usize,
    mut cut: impl FnMut() -> usize,
) -> (Vec<String>, Result<Option<usize>, Malformed>) {
    let mut reader = Replies::new(1 << 16);
    reader.expect(replies);
    let (mut at, mut fed) = (0, 0);
    let mut tokens = Vec::new();
    loop {
        let mut piece = &input[at..fed];
        let came = reader.feed(&mut piece, |token| {
            tokens.push(format!("{token:?}"));
            Ok(())
        });
        at = fed - piece.len();
        match came {
            Err(error) => return (tokens, Err(error)),
            Ok(Fed::Done) => return (tokens, Ok(Some(at))),
            Ok(Fed::More(missing)) => {
                assert!(missing > 0);
                if fed == input.len() {
                    return (tokens, Ok(None));
                }
                fed = (fed + cut().max(1)).min(input.len());
            }
        }
    }
}

fuzz_target!(|data: (u8, Vec<u8>, &[u8])| {
    let (replies, cuts, input) = data;
    let replies = usize::from(replies % 8);
    let whole = read(input, replies, || usize::MAX >> 1);
    let mut cuts = cuts.iter().cycle();
    let pieces = read(input, replies, || cuts.next().map_or(1, |cut| usize::from(*cut)));
    // A fault may be seen at another place, since a piece may end before it; but never be missed.
    if whole.1.is_ok() {
        assert_eq!(whole, pieces);
    } else {
        assert!(pieces.1.is_err());
        assert!(pieces.0.starts_with(&whole.0) || whole.0.starts_with(&pieces.0));
    }
});

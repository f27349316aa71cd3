//! The reply reader: any bytes, cut anywhere, give the same tokens as the bytes in one piece, and never panic. What is
//! kept of them stays as it was.
#![no_main]

use bytes::{Bytes, BytesMut};
use dogpile::Error;
use dogpile::internals::Chunk;
use dogpile::internals::{Fed, Parser, Token};
use libfuzzer_sys::fuzz_target;

/// All tokens as text, and how it ended: nothing but the pieces' sizes may differ.
fn read(input: &[u8], replies: usize, mut cut: impl FnMut() -> usize) -> (Vec<String>, Result<Option<usize>, Error>) {
    let mut reader = Parser::new(1 << 16);
    reader.expect(replies);
    let (mut at, mut fed) = (0, 0);
    let (mut tokens, mut kept) = (Vec::new(), Vec::<(Vec<u8>, Bytes)>::new());
    let mut arena = BytesMut::with_capacity(64);
    let end = loop {
        let mut chunk = Chunk::copying(&input[at..fed], &mut arena);
        let came = reader.feed(&mut chunk, &mut |token: Token<'_>, chunk: &mut Chunk<'_>| {
            tokens.push(format!("{token:?}"));
            if let Token::Bulk(bytes) = token {
                kept.push((bytes.to_vec(), chunk.keep(bytes)));
            }
            Ok(())
        });
        at = fed - chunk.rest().len();
        match came {
            Err(error) => break Err(error),
            Ok(Fed::Done) => break Ok(Some(at)),
            Ok(Fed::More(missing)) => {
                assert!(missing > 0);
                if fed == input.len() {
                    break Ok(None);
                }
                fed = (fed + cut().max(1)).min(input.len());
            }
        }
    };
    kept.iter().for_each(|(bytes, kept)| assert_eq!(bytes, kept));
    (tokens, end)
}

fuzz_target!(|data: (u8, Vec<u8>, &[u8])| {
    let (replies, cuts, input) = data;
    let replies = usize::from(replies % 8);
    let whole = read(input, replies, || usize::MAX >> 1);
    let mut cuts = cuts.iter().cycle();
    let pieces = read(input, replies, || cuts.next().map_or(1, |cut| usize::from(*cut)));
    // A fault may be seen at another place, since a piece may end before it; but never be missed.
    if let Ok(end) = &whole.1 {
        assert_eq!(&whole.0, &pieces.0);
        assert_eq!(*end, *pieces.1.as_ref().unwrap());
    } else {
        assert!(pieces.1.is_err());
        assert!(pieces.0.starts_with(&whole.0) || whole.0.starts_with(&pieces.0));
    }
});

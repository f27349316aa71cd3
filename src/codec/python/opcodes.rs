//! Opcodes of a pickle, followed without recursion into a graph of plain data.

use std::collections::BTreeMap;

use super::graph::{Class, Graph, Id, Node, value, wrong};
use crate::codec::{CodecError, CodecErrorKind};

impl<'a> Graph<'a> {
    /// Follows a pickle of protocol 2 to 5, in time and memory proportional to its length.
    pub(super) fn read(pickle: &'a [u8]) -> Result<Self, CodecError> {
        let mut machine = Machine { rest: pickle, ..Machine::default() };
        match machine.take(2)? {
            [PROTO, 2..=5] => {}
            _ => return Err(wrong("the entry is not a pickle of protocol 2 to 5")),
        }
        while machine.step()? {}
        if !machine.rest.is_empty() {
            return Err(CodecError::new(CodecErrorKind::Length, "the entry goes on after the end of the pickle"));
        }
        let ([root], true) = (&machine.stack[..], machine.marks.is_empty()) else {
            return Err(wrong("the pickle does not end with one value"));
        };
        Ok(Graph::new(machine.nodes, *root, pickle.len()))
    }
}

// The opcodes of plain data, by the names of Python's `pickle`.
const PROTO: u8 = 0x80;
const FRAME: u8 = 0x95;
const STOP: u8 = b'.';
const MARK: u8 = b'(';
const BINPUT: u8 = b'q';
const LONG_BINPUT: u8 = b'r';
const MEMOIZE: u8 = 0x94;
const BINGET: u8 = b'h';
const LONG_BINGET: u8 = b'j';
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
const BININT: u8 = b'J';
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const LONG1: u8 = 0x8a;
const LONG4: u8 = 0x8b;
const BINFLOAT: u8 = b'G';
const SHORT_BINUNICODE: u8 = 0x8c;
const BINUNICODE: u8 = b'X';
const BINUNICODE8: u8 = 0x8d;
const SHORT_BINBYTES: u8 = b'C';
const BINBYTES: u8 = b'B';
const BINBYTES8: u8 = 0x8e;
const BYTEARRAY8: u8 = 0x96;
const EMPTY_LIST: u8 = b']';
const APPEND: u8 = b'a';
const APPENDS: u8 = b'e';
const EMPTY_TUPLE: u8 = b')';
const TUPLE: u8 = b't';
const TUPLE1: u8 = 0x85;
const TUPLE2: u8 = 0x86;
const TUPLE3: u8 = 0x87;
const EMPTY_SET: u8 = 0x8f;
const ADDITEMS: u8 = 0x90;
const FROZENSET: u8 = 0x91;
const EMPTY_DICT: u8 = b'}';
const SETITEM: u8 = b's';
const SETITEMS: u8 = b'u';
const GLOBAL: u8 = b'c';
const STACK_GLOBAL: u8 = 0x93;
const REDUCE: u8 = b'R';
const NEWOBJ: u8 = 0x81;

/// Python's unpickling machine, as far as plain data needs it.
#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// How high the stack was at each open mark.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Follows one opcode. Whether there are more.
    fn step(&mut self) -> Result<bool, CodecError> {
        match self.byte()? {
            STOP => return Ok(false),
            FRAME => drop(self.take(8)?),
            MARK => self.marks.push(self.stack.len()),

            BINPUT => {
                let at = self.byte()?.into();
                self.memoize(at)?;
            }
            LONG_BINPUT => {
                let at = u32::from_le_bytes(self.array()?);
                self.memoize(at)?;
            }
            MEMOIZE => {
                let at = self.memo.len() as u32; // Each takes a byte of less than 4 GiB, see `push`.
                self.memoize(at)?;
            }
            BINGET => {
                let at = self.byte()?.into();
                self.recall(at)?;
            }
            LONG_BINGET => {
                let at = u32::from_le_bytes(self.array()?);
                self.recall(at)?;
            }

            NONE => self.push(Node::None)?,
            NEWTRUE => self.push(Node::Bool(true))?,
            NEWFALSE => self.push(Node::Bool(false))?,
            BININT => {
                let int = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(int.into()))?;
            }
            BININT1 => {
                let int = self.byte()?;
                self.push(Node::Int(int.into()))?;
            }
            BININT2 => {
                let int = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(int.into()))?;
            }
            LONG1 => {
                let digits = self.take_u8()?;
                self.push(Node::Int(int(digits)?))?;
            }
            LONG4 => {
                let digits = self.take_u32()?;
                self.push(Node::Int(int(digits)?))?;
            }
            BINFLOAT => {
                let float = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(float))?;
            }

            SHORT_BINUNICODE => {
                let text = self.take_u8()?;
                self.push_text(text)?;
            }
            BINUNICODE => {
                let text = self.take_u32()?;
                self.push_text(text)?;
            }
            BINUNICODE8 => {
                let text = self.take_u64()?;
                self.push_text(text)?;
            }
            SHORT_BINBYTES => {
                let bytes = self.take_u8()?;
                self.push(Node::Bytes(bytes))?;
            }
            BINBYTES => {
                let bytes = self.take_u32()?;
                self.push(Node::Bytes(bytes))?;
            }
            BINBYTES8 | BYTEARRAY8 => {
                let bytes = self.take_u64()?;
                self.push(Node::Bytes(bytes))?;
            }

            EMPTY_LIST => self.push(Node::List(Vec::new()))?,
            EMPTY_TUPLE => self.push(Node::Tuple(Vec::new()))?,
            EMPTY_SET => self.push(Node::Set(Vec::new()))?,
            EMPTY_DICT => self.push(Node::Dict(Vec::new()))?,
            APPEND => {
                let items = self.above(1)?;
                self.extend(items, Node::list)?;
            }
            APPENDS => {
                let items = self.above_mark()?;
                self.extend(items, Node::list)?;
            }
            ADDITEMS => {
                let items = self.above_mark()?;
                self.extend(items, Node::set)?;
            }
            SETITEM => {
                let items = self.above(2)?;
                self.extend(items, Node::dict)?;
            }
            SETITEMS => {
                let items = self.above_mark()?;
                if !(self.stack.len() - items).is_multiple_of(2) {
                    return Err(wrong("the pickle has a key without a value"));
                }
                self.extend(items, Node::dict)?;
            }
            TUPLE => {
                let items = self.above_mark()?;
                self.push_tuple(items)?;
            }
            TUPLE1 => {
                let items = self.above(1)?;
                self.push_tuple(items)?;
            }
            TUPLE2 => {
                let items = self.above(2)?;
                self.push_tuple(items)?;
            }
            TUPLE3 => {
                let items = self.above(3)?;
                self.push_tuple(items)?;
            }
            FROZENSET => {
                let items = self.above_mark()?;
                let items = self.stack.split_off(items);
                self.push(Node::Set(items))?;
            }

            GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Class(class(module, name)?))?;
            }
            STACK_GLOBAL => {
                let [module, name] = self.pop()?;
                let (Node::Text(module), Node::Text(name)) = (self.node(module), self.node(name)) else {
                    return Err(wrong("the pickle names a class by something other than text"));
                };
                self.push(Node::Class(class(module, name)?))?;
            }
            REDUCE | NEWOBJ => {
                let [class, arguments] = self.pop()?;
                self.call(class, arguments)?;
            }
            other => {
                return Err(wrong(format!("the pickle has the opcode {other:#04x}, which plain data does not need")));
            }
        }
        Ok(true)
    }

    /// Calls one of the few things that may be called. Nothing is copied: calls are cheap, so there may be many.
    fn call(&mut self, class: Id, arguments: Id) -> Result<(), CodecError> {
        let (Node::Class(class), Node::Tuple(arguments)) = (self.node(class), self.node(arguments)) else {
            return Err(wrong("the pickle calls something that cannot be called"));
        };
        let (class, first) = (*class, arguments.first().map(|id| (*id, self.node(*id))));
        let made = match (class, first, &arguments[..]) {
            (Class::CachedValue, _, [payload, meta]) => Node::CachedValue([*payload, *meta]),
            (Class::NoValue, Some((_, Node::Text("NoValue"))), [_]) => Node::NoValue,
            (Class::Bytes | Class::Bytearray, None, _) => Node::Bytes(b""),
            (Class::Set, None, _) => Node::Set(Vec::new()),
            // Sets are read as lists are.
            (Class::Set, Some((same, Node::List(_))), [_])
            | (Class::Bytearray, Some((same, Node::Bytes(_) | Node::Latin1(_))), [_]) => {
                self.stack.push(same);
                return Ok(());
            }
            (Class::Encode | Class::Bytearray, Some((_, Node::Text(text))), [_, encoding])
                if matches!(self.node(*encoding), Node::Text("latin1" | "latin-1")) =>
            {
                Node::Latin1(text)
            }
            _ => return Err(wrong("the pickle makes plain data in a way that Python does not")),
        };
        self.push(made)
    }

    fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), CodecError> {
        let id = u32::try_from(self.nodes.len()).map_err(|_| value("the pickle has too many values"))?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    fn push_text(&mut self, text: &'a [u8]) -> Result<(), CodecError> {
        self.push(Node::Text(utf8(text)?))
    }

    /// Where the topmost `count` values of the stack begin. Those under the last mark are out of reach.
    fn above(&self, count: usize) -> Result<usize, CodecError> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        self.stack.len().checked_sub(count).filter(|at| *at >= bottom).ok_or_else(missing)
    }

    /// Where the values above the last mark begin. The mark is gone then.
    fn above_mark(&mut self) -> Result<usize, CodecError> {
        self.marks.pop().ok_or_else(missing)
    }

    fn pop(&mut self) -> Result<[Id; 2], CodecError> {
        let at = self.above(2)?;
        let popped = [self.stack[at], self.stack[at + 1]];
        self.stack.truncate(at);
        Ok(popped)
    }

    fn top(&self) -> Result<Id, CodecError> {
        self.above(1).map(|at| self.stack[at])
    }

    fn push_tuple(&mut self, items: usize) -> Result<(), CodecError> {
        let items = self.stack.split_off(items);
        self.push(Node::Tuple(items))
    }

    /// Moves the values from `items` on into the collection under them.
    fn extend(
        &mut self,
        items: usize,
        of: impl for<'n> FnOnce(&'n mut Node<'a>) -> Option<&'n mut Vec<Id>>,
    ) -> Result<(), CodecError> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let under = *self.stack[bottom..items].last().ok_or_else(missing)?;
        let collection = of(&mut self.nodes[under as usize]);
        let collection = collection.ok_or_else(|| wrong("the pickle adds items to what cannot hold them"))?;
        collection.extend(self.stack.drain(items..));
        Ok(())
    }

    fn memoize(&mut self, at: u32) -> Result<(), CodecError> {
        let top = self.top()?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), CodecError> {
        let id = self.memo.get(&at).ok_or_else(|| wrong("the pickle refers to a value that it does not have"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(too_short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(too_short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, CodecError> {
        self.array().map(|[byte]| byte)
    }

    fn take_u8(&mut self) -> Result<&'a [u8], CodecError> {
        let len = self.byte()?;
        self.take(len.into())
    }

    fn take_u32(&mut self) -> Result<&'a [u8], CodecError> {
        let len = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(len).map_err(|_| too_short())?)
    }

    fn take_u64(&mut self) -> Result<&'a [u8], CodecError> {
        let len = u64::from_le_bytes(self.array()?);
        self.take(usize::try_from(len).map_err(|_| too_short())?)
    }

    fn line(&mut self) -> Result<&'a str, CodecError> {
        let len = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(too_short)?;
        let line = utf8(self.take(len)?)?;
        self.take(1)?;
        Ok(line)
    }
}

/// The class of a name, or an error that names it.
fn class(module: &str, name: &str) -> Result<Class, CodecError> {
    Ok(match (module, name) {
        ("builtins" | "__builtin__", "set" | "frozenset") => Class::Set,
        ("builtins" | "__builtin__", "bytes") => Class::Bytes,
        ("builtins" | "__builtin__", "bytearray") => Class::Bytearray,
        ("_codecs", "encode") => Class::Encode,
        ("dogpile.cache.api", "CachedValue") => Class::CachedValue,
        ("dogpile.cache.api", "NoValue") => Class::NoValue,
        _ => return Err(wrong(format!("the pickle holds a `{module:.60}.{name:.60}`, which is not plain data"))),
    })
}

/// An integer from its digits in base 256, the lowest first, in two's complement.
fn int(digits: &[u8]) -> Result<i128, CodecError> {
    let Some(highest) = digits.last() else { return Ok(0) };
    let mut wide = [if *highest < 0x80 { 0 } else { 0xff }; 16];
    let low = wide.get_mut(..digits.len()).ok_or_else(|| value("the pickle holds an integer of more than 128 bits"))?;
    low.copy_from_slice(digits);
    Ok(i128::from_le_bytes(wide))
}

fn utf8(text: &[u8]) -> Result<&str, CodecError> {
    std::str::from_utf8(text).map_err(|_| value("the pickle holds a text that is not UTF-8"))
}

#[cold]
fn missing() -> CodecError {
    wrong("the pickle uses more values than it has")
}

#[cold]
fn too_short() -> CodecError {
    CodecError::new(CodecErrorKind::Length, "the pickle ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root of a pickle of protocol 2 of these opcodes, checked.
    fn read(opcodes: &[u8]) -> Result<(), CodecError> {
        let pickle = [b"\x80\x02", opcodes, b"."].concat();
        let graph = Graph::read(&pickle)?;
        graph.check(graph.root())
    }

    fn kind(opcodes: &[u8]) -> CodecErrorKind {
        read(opcodes).unwrap_err().kind()
    }

    #[test]
    fn nesting_has_an_end() {
        for (open, close) in [(&b"]"[..], &b"a"[..]), (b"}N", b"s"), (b"(", b"t"), (b"", b"\x85"), (b"(", b"\x91")] {
            let nested = |levels| [&open.repeat(levels)[..], b"N", &close.repeat(levels)].concat();
            assert_eq!(read(&nested(128)), Ok(()));
            assert_eq!(kind(&nested(129)), CodecErrorKind::Value);
            assert_eq!(kind(&nested(200_000)), CodecErrorKind::Value);
        }
        // Deep by what is shared: each list holds the one before it.
        let shared = |levels| [&b"(]"[..], &b"q\0]h\0a".repeat(levels), b"t"].concat();
        assert_eq!(read(&shared(127)), Ok(()));
        assert_eq!(kind(&shared(128)), CodecErrorKind::Value);
    }

    #[test]
    fn what_contains_itself_is_refused() {
        for opcodes in
            [&b"]q\0h\0a"[..], b"]q\0h\0\x85a", b"}q\0Nh\0s", b"}q\0N]h\0as", b"]q\0]q\x01h\0aa", b"\x8fq\0(h\0\x90"]
        {
            assert_eq!(kind(opcodes), CodecErrorKind::Value, "{}", opcodes.escape_ascii());
        }
    }

    #[test]
    fn shared_values_count_as_often_as_they_are_visited() {
        let laughs = |levels| [&b"]Na"[..], &b"q\0](h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0e".repeat(levels)].concat();
        let inside = |levels| [&b"("[..], &laughs(levels), b"t"].concat();
        assert_eq!(read(&inside(4)), Ok(()));
        assert_eq!(kind(&inside(6)), CodecErrorKind::Value);
        assert_eq!(kind(&inside(100)), CodecErrorKind::Value);
        // A long text, often; and often enough for what is shared in earnest.
        let text = [b"X\0\0\x01\0", &[b'a'; 1 << 16][..], b"q\0"].concat();
        let often = |times| [b"](", &text[..], &b"h\0".repeat(times), b"e"].concat();
        assert_eq!(read(&often(200)), Ok(()));
        assert_eq!(kind(&often(300)), CodecErrorKind::Value);
    }

    #[test]
    fn values_that_share_nothing_are_never_too_large() {
        assert_eq!(read(&[b"](", &b"N".repeat(3_000_000)[..], b"e"].concat()), Ok(()));
        assert_eq!(read(&[b"](", &b"]".repeat(3_000_000)[..], b"e"].concat()), Ok(()));
    }

    #[test]
    fn calls_copy_nothing() {
        let list = [b"(cbuiltins\nset\nq\0](", &b"N".repeat(100_000)[..], b"eq\x01\x85R"].concat();
        let sets = [&list[..], &b"h\0h\x01\x85R".repeat(100_000), b"t"].concat();
        assert_eq!(kind(&sets), CodecErrorKind::Value);
    }

    #[test]
    fn only_opcodes_of_plain_data_are_followed() {
        let known = b"\x95.(qr\x94hjN\x88\x89JKM\x8a\x8bG\x8cX\x8dCB\x8e\x96]ae)t\x85\x86\x87\x8f\x90\x91}suc\x93R\x81";
        for opcode in 0..=255 {
            let error = read(&[b"]N", &[opcode][..], &[0; 600]].concat()).unwrap_err();
            let refused = error.to_string().starts_with("the pickle has the opcode");
            // The zeros after some are no opcode, either.
            assert!(refused || known.contains(&opcode), "{opcode:#x}: {error}");
            if !known.contains(&opcode) {
                assert_eq!(error.kind(), CodecErrorKind::Type);
            }
        }
        for (opcodes, kind_of) in [
            (&b"I1\n"[..], CodecErrorKind::Type),
            (b"P1\n", CodecErrorKind::Type),
            (b"N2\x86", CodecErrorKind::Type),
            (b"NN0", CodecErrorKind::Type),
            (b"\x80\x02N", CodecErrorKind::Type),
        ] {
            assert_eq!(kind(opcodes), kind_of, "{}", opcodes.escape_ascii());
        }
        assert_eq!(Graph::read(b"\x80\x01N.").unwrap_err().kind(), CodecErrorKind::Type);
        assert_eq!(Graph::read(b"\x80\x06N.").unwrap_err().kind(), CodecErrorKind::Type);
        assert_eq!(Graph::read(b"N.").unwrap_err().kind(), CodecErrorKind::Type);
        assert_eq!(Graph::read(b"\x80").unwrap_err().kind(), CodecErrorKind::Length);
    }

    #[test]
    fn other_classes_are_named() {
        for opcodes in
            [&b"cdatetime\ndate\nC\x04\x07\xe0\x08\r\x85R"[..], b"](NX\x08\0\0\0datetimeX\x04\0\0\0date\x93e"]
        {
            let error = read(opcodes).unwrap_err();
            assert_eq!(error.kind(), CodecErrorKind::Type);
            assert_eq!(error.to_string(), "the pickle holds a `datetime.date`, which is not plain data");
        }
        let long = [b"c", &[b'a'; 100_000][..], b"\nb\n"].concat();
        assert!(read(&long).unwrap_err().to_string().len() < 200);
        // What only takes part in making data is none.
        for opcodes in [&b"cbuiltins\nset\n"[..], b"cdogpile.cache.api\nNoValue\n\x85", b"c_codecs\nencode\n\x85"] {
            assert_eq!(kind(opcodes), CodecErrorKind::Type);
        }
        assert_eq!(kind(b"](cdogpile.cache.api\nCachedValue\nNN\x86\x81e"), CodecErrorKind::Type);
        assert_eq!(kind(b"](cdogpile.cache.api\nNoValue\nX\x07\0\0\0NoValue\x85Re"), CodecErrorKind::Type);
    }

    #[test]
    fn broken_programs_are_errors() {
        for opcodes in [
            &b""[..],
            b"NN",
            b"(N",
            b"e",
            b"a",
            b"Na",
            b"]a",
            b"](a",
            b"](Na",
            b"N(Ne",
            b"}(Nu",
            b"}Ns",
            b"\x85",
            b"N\x86",
            b"(N\x86",
            b"q\0",
            b"]((q\0",
            b"h\0",
            b"j\xff\xff\xff\xff",
            b"\x94",
            b"NR",
            b"NNR",
            b"NN\x93",
            b"cbuiltins\nset\nNR",
            b"cbuiltins\nset\nN\x85R",
            b"cbuiltins\nbytes\nN\x85R",
            b"c_codecs\nencode\n)R",
            b"c_codecs\nencode\nX\x01\0\0\0aX\x04\0\0\0utf8\x86R",
            b"cdogpile.cache.api\nCachedValue\n)R",
        ] {
            assert_eq!(kind(opcodes), CodecErrorKind::Type, "{}", opcodes.escape_ascii());
        }
        for opcodes in [&b"X\x01\0\0\0\xff"[..], b"c\xff\n\n", b"\x8a\x11aaaaaaaaaaaaaaaaa"] {
            assert_eq!(kind(opcodes), CodecErrorKind::Value, "{}", opcodes.escape_ascii());
        }
        for opcodes in [
            &b"J"[..],
            b"X\xff\xff\xff\xff",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\xff",
            b"\x8a\xff",
            b"cbuiltins",
            b"cbuiltins\n",
        ] {
            assert_eq!(kind(opcodes), CodecErrorKind::Length, "{}", opcodes.escape_ascii());
        }
    }

    #[test]
    fn integers_are_in_twos_complement() {
        for (digits, expected) in [
            (&b""[..], Ok(0)),
            (b"\0", Ok(0)),
            (b"\xff", Ok(-1)),
            (b"\xff\0", Ok(255)),
            (b"\x00\x80", Ok(-32_768)),
            (&[0xff; 16], Ok(-1)),
            (&[0; 17], Err(CodecErrorKind::Value)),
        ] {
            assert_eq!(int(digits).map_err(|error| error.kind()), expected);
        }
    }
}

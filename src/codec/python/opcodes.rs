//! An interpreter of pickle opcodes that builds a graph of plain data without recursion.

use std::collections::BTreeMap;

use super::graph::{Class, Graph, GraphNode, Id, type_error, value_error};
use crate::codec::{CodecError, CodecErrorKind};

impl<'a> Graph<'a> {
    /// Interprets a pickle of protocol 2 to 5.
    ///
    /// Time and memory are proportional to the length of the pickle.
    pub(super) fn read(pickle: &'a [u8]) -> Result<Self, CodecError> {
        let mut machine = PickleMachine { rest: pickle, ..PickleMachine::default() };
        match machine.take(2)? {
            [PROTO, 2..=5] => {}
            _ => return Err(type_error("the entry is not a pickle of protocol 2 to 5")),
        }
        while machine.step()? {}
        if !machine.rest.is_empty() {
            return Err(CodecError::new(CodecErrorKind::Length, "the entry has trailing bytes after the pickle"));
        }
        let ([root], true) = (&machine.stack[..], machine.marks.is_empty()) else {
            return Err(type_error("the pickle does not end with exactly one value"));
        };
        Ok(Graph::new(machine.nodes, *root, pickle.len()))
    }
}

// The opcodes of plain data, named as in Python's module `pickle`.
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

/// Python's unpickling machine, restricted to the opcodes of plain data.
#[derive(Default)]
struct PickleMachine<'a> {
    rest: &'a [u8],
    nodes: Vec<GraphNode<'a>>,
    stack: Vec<Id>,
    /// The height of the stack at each open mark.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl<'a> PickleMachine<'a> {
    /// Executes one opcode. Returns `false` after the last one.
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
                let at = self.memo.len() as u32; // Each takes a byte of an entry of less than 4 GiB.
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

            NONE => self.push(GraphNode::None)?,
            NEWTRUE => self.push(GraphNode::Bool(true))?,
            NEWFALSE => self.push(GraphNode::Bool(false))?,
            BININT => {
                let int = i32::from_le_bytes(self.array()?);
                self.push(GraphNode::Int(int.into()))?;
            }
            BININT1 => {
                let int = self.byte()?;
                self.push(GraphNode::Int(int.into()))?;
            }
            BININT2 => {
                let int = u16::from_le_bytes(self.array()?);
                self.push(GraphNode::Int(int.into()))?;
            }
            LONG1 => {
                let bytes = self.take_u8()?;
                self.push(GraphNode::Int(decode_int(bytes)?))?;
            }
            LONG4 => {
                let bytes = self.take_u32()?;
                self.push(GraphNode::Int(decode_int(bytes)?))?;
            }
            BINFLOAT => {
                let float = f64::from_be_bytes(self.array()?);
                self.push(GraphNode::Float(float))?;
            }

            SHORT_BINUNICODE => {
                let string = self.take_u8()?;
                self.push_str(string)?;
            }
            BINUNICODE => {
                let string = self.take_u32()?;
                self.push_str(string)?;
            }
            BINUNICODE8 => {
                let string = self.take_u64()?;
                self.push_str(string)?;
            }
            SHORT_BINBYTES => {
                let bytes = self.take_u8()?;
                self.push(GraphNode::Bytes(bytes))?;
            }
            BINBYTES => {
                let bytes = self.take_u32()?;
                self.push(GraphNode::Bytes(bytes))?;
            }
            BINBYTES8 | BYTEARRAY8 => {
                let bytes = self.take_u64()?;
                self.push(GraphNode::Bytes(bytes))?;
            }

            EMPTY_LIST => self.push(GraphNode::List(Vec::new()))?,
            EMPTY_TUPLE => self.push(GraphNode::Tuple(Vec::new()))?,
            EMPTY_SET => self.push(GraphNode::Set(Vec::new()))?,
            EMPTY_DICT => self.push(GraphNode::Dict(Vec::new()))?,
            APPEND => {
                let items = self.above(1)?;
                self.extend(items, GraphNode::list)?;
            }
            APPENDS => {
                let items = self.above_mark()?;
                self.extend(items, GraphNode::list)?;
            }
            ADDITEMS => {
                let items = self.above_mark()?;
                self.extend(items, GraphNode::set)?;
            }
            SETITEM => {
                let items = self.above(2)?;
                self.extend(items, GraphNode::dict)?;
            }
            SETITEMS => {
                let items = self.above_mark()?;
                if !(self.stack.len() - items).is_multiple_of(2) {
                    return Err(type_error("the pickle contains a key without a value"));
                }
                self.extend(items, GraphNode::dict)?;
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
                self.push(GraphNode::Set(items))?;
            }

            GLOBAL => {
                let (module, name) = (self.read_line()?, self.read_line()?);
                self.push(GraphNode::Class(class(module, name)?))?;
            }
            STACK_GLOBAL => {
                let [module, name] = self.pop()?;
                let (GraphNode::Str(module), GraphNode::Str(name)) = (self.node(module), self.node(name)) else {
                    return Err(type_error("the pickle names a class by a value that is not a string"));
                };
                self.push(GraphNode::Class(class(module, name)?))?;
            }
            REDUCE | NEWOBJ => {
                let [class, arguments] = self.pop()?;
                self.call(class, arguments)?;
            }
            other => {
                return Err(type_error(format!(
                    "the pickle contains the opcode {other:#04x}, which plain data does not use"
                )));
            }
        }
        Ok(true)
    }

    /// Simulates the call of one of the few supported classes and functions.
    ///
    /// It never copies data. A call takes only a few bytes of the pickle, so a hostile pickle could
    /// amplify each copy.
    fn call(&mut self, class: Id, arguments: Id) -> Result<(), CodecError> {
        let (GraphNode::Class(class), GraphNode::Tuple(arguments)) = (self.node(class), self.node(arguments)) else {
            return Err(type_error("the pickle calls a value that is not callable"));
        };
        let (class, first) = (*class, arguments.first().map(|id| (*id, self.node(*id))));
        let made = match (class, first, &arguments[..]) {
            (Class::CachedValue, _, [payload, meta]) => GraphNode::CachedValue([*payload, *meta]),
            (Class::NoValue, Some((_, GraphNode::Str("NoValue"))), [_]) => GraphNode::NoValue,
            (Class::Bytes | Class::Bytearray, None, _) => GraphNode::Bytes(b""),
            (Class::Set, None, _) => GraphNode::Set(Vec::new()),
            // A set keeps the list of its items, because both are read in the same way.
            (Class::Set, Some((same, GraphNode::List(_))), [_])
            | (Class::Bytearray, Some((same, GraphNode::Bytes(_) | GraphNode::Latin1(_))), [_]) => {
                self.stack.push(same);
                return Ok(());
            }
            (Class::Encode | Class::Bytearray, Some((_, GraphNode::Str(string))), [_, encoding])
                if matches!(self.node(*encoding), GraphNode::Str("latin1" | "latin-1")) =>
            {
                GraphNode::Latin1(string)
            }
            _ => return Err(type_error("the pickle constructs plain data in a way that Python does not use")),
        };
        self.push(made)
    }

    fn node(&self, id: Id) -> &GraphNode<'a> {
        &self.nodes[id as usize]
    }

    fn push(&mut self, node: GraphNode<'a>) -> Result<(), CodecError> {
        let id = u32::try_from(self.nodes.len()).map_err(|_| value_error("the pickle contains too many values"))?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    fn push_str(&mut self, bytes: &'a [u8]) -> Result<(), CodecError> {
        self.push(GraphNode::Str(utf8(bytes)?))
    }

    /// Returns the stack index of the first of the topmost `count` values.
    ///
    /// Values below the last mark are not accessible.
    fn above(&self, count: usize) -> Result<usize, CodecError> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        self.stack.len().checked_sub(count).filter(|at| *at >= bottom).ok_or_else(stack_underflow)
    }

    /// Removes the last mark and returns the stack index of the first value above it.
    fn above_mark(&mut self) -> Result<usize, CodecError> {
        self.marks.pop().ok_or_else(stack_underflow)
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
        self.push(GraphNode::Tuple(items))
    }

    /// Moves the values from the stack index `items` on into the collection directly below them.
    fn extend(
        &mut self,
        items: usize,
        items_of: impl for<'n> FnOnce(&'n mut GraphNode<'a>) -> Option<&'n mut Vec<Id>>,
    ) -> Result<(), CodecError> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let target = *self.stack[bottom..items].last().ok_or_else(stack_underflow)?;
        let collection = items_of(&mut self.nodes[target as usize]);
        let collection =
            collection.ok_or_else(|| type_error("the pickle adds items to a value that is not a collection"))?;
        collection.extend(self.stack.drain(items..));
        Ok(())
    }

    fn memoize(&mut self, at: u32) -> Result<(), CodecError> {
        let top = self.top()?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), CodecError> {
        let id = self
            .memo
            .get(&at)
            .ok_or_else(|| type_error("the pickle refers to a memoized value that does not exist"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(truncated)?;
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
        self.take(usize::try_from(len).map_err(|_| truncated())?)
    }

    fn take_u64(&mut self) -> Result<&'a [u8], CodecError> {
        let len = u64::from_le_bytes(self.array()?);
        self.take(usize::try_from(len).map_err(|_| truncated())?)
    }

    fn read_line(&mut self) -> Result<&'a str, CodecError> {
        let len = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(truncated)?;
        let line = utf8(self.take(len)?)?;
        self.take(1)?;
        Ok(line)
    }
}

/// Returns the supported class with this name, or an error that contains the name.
fn class(module: &str, name: &str) -> Result<Class, CodecError> {
    Ok(match (module, name) {
        ("builtins" | "__builtin__", "set" | "frozenset") => Class::Set,
        ("builtins" | "__builtin__", "bytes") => Class::Bytes,
        ("builtins" | "__builtin__", "bytearray") => Class::Bytearray,
        ("_codecs", "encode") => Class::Encode,
        ("dogpile.cache.api", "CachedValue") => Class::CachedValue,
        ("dogpile.cache.api", "NoValue") => Class::NoValue,
        _ => {
            return Err(type_error(format!(
                "the pickle contains a `{module:.60}.{name:.60}`, which is not plain data"
            )));
        }
    })
}

/// Decodes a little-endian integer in two's complement.
fn decode_int(bytes: &[u8]) -> Result<i128, CodecError> {
    let Some(highest) = bytes.last() else { return Ok(0) };
    let mut extended = [if *highest < 0x80 { 0 } else { 0xff }; 16];
    let low = extended
        .get_mut(..bytes.len())
        .ok_or_else(|| value_error("the pickle contains an integer of more than 128 bits"))?;
    low.copy_from_slice(bytes);
    Ok(i128::from_le_bytes(extended))
}

fn utf8(bytes: &[u8]) -> Result<&str, CodecError> {
    std::str::from_utf8(bytes).map_err(|_| value_error("the pickle contains a string that is not valid UTF-8"))
}

#[cold]
fn stack_underflow() -> CodecError {
    type_error("the pickle takes more values from its stack than it pushed")
}

#[cold]
fn truncated() -> CodecError {
    CodecError::new(CodecErrorKind::Length, "the pickle is truncated")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets a protocol 2 pickle with these opcodes and checks its root.
    fn read(opcodes: &[u8]) -> Result<(), CodecError> {
        let pickle = [b"\x80\x02", opcodes, b"."].concat();
        let graph = Graph::read(&pickle)?;
        graph.check(graph.root())
    }

    fn kind(opcodes: &[u8]) -> CodecErrorKind {
        read(opcodes).unwrap_err().kind()
    }

    #[test]
    fn limits_the_nesting_depth() {
        for (open, close) in [(&b"]"[..], &b"a"[..]), (b"}N", b"s"), (b"(", b"t"), (b"", b"\x85"), (b"(", b"\x91")] {
            let nested = |levels| [&open.repeat(levels)[..], b"N", &close.repeat(levels)].concat();
            assert_eq!(read(&nested(128)), Ok(()));
            assert_eq!(kind(&nested(129)), CodecErrorKind::Value);
            assert_eq!(kind(&nested(200_000)), CodecErrorKind::Value);
        }
        // Nesting through shared values: each list contains the previous one.
        let shared = |levels| [&b"(]"[..], &b"q\0]h\0a".repeat(levels), b"t"].concat();
        assert_eq!(read(&shared(127)), Ok(()));
        assert_eq!(kind(&shared(128)), CodecErrorKind::Value);
    }

    #[test]
    fn rejects_values_that_contain_themselves() {
        for opcodes in
            [&b"]q\0h\0a"[..], b"]q\0h\0\x85a", b"}q\0Nh\0s", b"}q\0N]h\0as", b"]q\0]q\x01h\0aa", b"\x8fq\0(h\0\x90"]
        {
            assert_eq!(kind(opcodes), CodecErrorKind::Value, "{}", opcodes.escape_ascii());
        }
    }

    #[test]
    fn counts_shared_values_once_per_reference() {
        let billion_laughs = |levels| [&b"]Na"[..], &b"q\0](h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0e".repeat(levels)].concat();
        let billion_laughs_in_tuple = |levels| [&b"("[..], &billion_laughs(levels), b"t"].concat();
        assert_eq!(read(&billion_laughs_in_tuple(4)), Ok(()));
        assert_eq!(kind(&billion_laughs_in_tuple(6)), CodecErrorKind::Value);
        assert_eq!(kind(&billion_laughs_in_tuple(100)), CodecErrorKind::Value);
        // A long string with many references. A realistic number of references is accepted.
        let string = [b"X\0\0\x01\0", &[b'a'; 1 << 16][..], b"q\0"].concat();
        let often = |times| [b"](", &string[..], &b"h\0".repeat(times), b"e"].concat();
        assert_eq!(read(&often(200)), Ok(()));
        assert_eq!(kind(&often(300)), CodecErrorKind::Value);
    }

    #[test]
    fn accepts_large_values_without_sharing() {
        assert_eq!(read(&[b"](", &b"N".repeat(3_000_000)[..], b"e"].concat()), Ok(()));
        assert_eq!(read(&[b"](", &b"]".repeat(3_000_000)[..], b"e"].concat()), Ok(()));
    }

    #[test]
    fn calls_do_not_copy() {
        let list = [b"(cbuiltins\nset\nq\0](", &b"N".repeat(100_000)[..], b"eq\x01\x85R"].concat();
        let sets = [&list[..], &b"h\0h\x01\x85R".repeat(100_000), b"t"].concat();
        assert_eq!(kind(&sets), CodecErrorKind::Value);
    }

    #[test]
    fn accepts_only_opcodes_of_plain_data() {
        let known = b"\x95.(qr\x94hjN\x88\x89JKM\x8a\x8bG\x8cX\x8dCB\x8e\x96]ae)t\x85\x86\x87\x8f\x90\x91}suc\x93R\x81";
        for opcode in 0..=255 {
            let error = read(&[b"]N", &[opcode][..], &[0; 600]].concat()).unwrap_err();
            let refused = error.to_string().starts_with("the pickle contains the opcode");
            // After some opcodes the following zeros are read as an opcode, which is unsupported
            // too.
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
    fn names_unsupported_classes() {
        for opcodes in
            [&b"cdatetime\ndate\nC\x04\x07\xe0\x08\r\x85R"[..], b"](NX\x08\0\0\0datetimeX\x04\0\0\0date\x93e"]
        {
            let error = read(opcodes).unwrap_err();
            assert_eq!(error.kind(), CodecErrorKind::Type);
            assert_eq!(error.to_string(), "the pickle contains a `datetime.date`, which is not plain data");
        }
        let long = [b"c", &[b'a'; 100_000][..], b"\nb\n"].concat();
        assert!(read(&long).unwrap_err().to_string().len() < 200);
        // Classes that only help to construct data are not data themselves.
        for opcodes in [&b"cbuiltins\nset\n"[..], b"cdogpile.cache.api\nNoValue\n\x85", b"c_codecs\nencode\n\x85"] {
            assert_eq!(kind(opcodes), CodecErrorKind::Type);
        }
        assert_eq!(kind(b"](cdogpile.cache.api\nCachedValue\nNN\x86\x81e"), CodecErrorKind::Type);
        assert_eq!(kind(b"](cdogpile.cache.api\nNoValue\nX\x07\0\0\0NoValue\x85Re"), CodecErrorKind::Type);
    }

    #[test]
    fn rejects_invalid_programs() {
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
    fn decodes_integers_in_twos_complement() {
        for (digits, expected) in [
            (&b""[..], Ok(0)),
            (b"\0", Ok(0)),
            (b"\xff", Ok(-1)),
            (b"\xff\0", Ok(255)),
            (b"\x00\x80", Ok(-32_768)),
            (&[0xff; 16], Ok(-1)),
            (&[0; 17], Err(CodecErrorKind::Value)),
        ] {
            assert_eq!(decode_int(digits).map_err(|error| error.kind()), expected);
        }
    }
}

//! [`KeyArgs`]: how the arguments of a cached function become a key.

use std::borrow::Cow;

use crate::float::Repr;
use crate::key::KeyBuf;

/// Arguments that a key can be made of: text, integers, `f64`, `bool`, `char`, `Option`, and tuples and
/// references of these.
///
/// Each argument is written as Python's `str` writes it, and several are joined by a space, as
/// `cache_on_arguments` of `dogpile.cache` does. Text that contains spaces can therefore give the same
/// key as other arguments, and `None` the same as the text "None". In such cases use
/// [`Function::keyed_by`](crate::Function::keyed_by). A tuple as one of several arguments is joined like
/// the others.
///
/// ```
/// use dogpile::KeyBuf;
/// use dogpile::region::KeyArgs;
///
/// let mut key = KeyBuf::new();
/// ("EUR", 15, true).write(&mut key);
/// assert_eq!(key, KeyBuf::new().text("EUR 15 True"));
/// ```
pub trait KeyArgs {
    /// Appends the arguments to a key.
    fn write(&self, key: &mut KeyBuf);
}

macro_rules! args_by_digits {
    ($($type:ty),+) => {$(
        impl KeyArgs for $type {
            fn write(&self, key: &mut KeyBuf) {
                key.push(itoa::Buffer::new().format(*self).as_bytes());
            }
        }
    )+};
}

args_by_digits!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

macro_rules! args_by_text {
    ($($type:ty),+) => {$(
        impl KeyArgs for $type {
            fn write(&self, key: &mut KeyBuf) {
                key.push(self.as_bytes());
            }
        }
    )+};
}

args_by_text!(str, String, Box<str>, Cow<'_, str>);

impl KeyArgs for char {
    fn write(&self, key: &mut KeyBuf) {
        key.push(self.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// `1.0`, `0.1`, `1e+16`, `1e-05`, `nan` or `inf`, as in Python.
impl KeyArgs for f64 {
    fn write(&self, key: &mut KeyBuf) {
        key.push(Repr::new(*self).as_bytes());
    }
}

/// The argument, or `None` as in Python, which cannot be told apart from the text "None".
impl<A: KeyArgs> KeyArgs for Option<A> {
    fn write(&self, key: &mut KeyBuf) {
        match self {
            Some(argument) => argument.write(key),
            None => key.push(b"None"),
        }
    }
}

/// `True` or `False`, as in Python.
impl KeyArgs for bool {
    fn write(&self, key: &mut KeyBuf) {
        key.push(if *self { b"True" } else { b"False" });
    }
}

impl KeyArgs for () {
    fn write(&self, _: &mut KeyBuf) {}
}

impl<A: KeyArgs + ?Sized> KeyArgs for &A {
    fn write(&self, key: &mut KeyBuf) {
        (**self).write(key);
    }
}

macro_rules! args_of_tuples {
    ($(($first:ident $($rest:ident)*))+) => {$(
        impl<$first: KeyArgs, $($rest: KeyArgs),*> KeyArgs for ($first, $($rest,)*) {
            #[allow(non_snake_case)]
            fn write(&self, key: &mut KeyBuf) {
                let ($first, $($rest,)*) = self;
                $first.write(key);
                $(
                    key.push(b" ");
                    $rest.write(key);
                )*
            }
        }
    )+};
}

args_of_tuples!((A)(A B)(A B C)(A B C D)(A B C D E)(A B C D E F));

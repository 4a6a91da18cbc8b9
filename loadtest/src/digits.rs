//! PURE. Numbers as digits of a fixed width: what a webhook's ids are made of, without the generality of `format!`,
//! which cost a tenth of the generator's time.

/// Two decimal digits each.
const DECIMAL: [[u8; 2]; 100] = pairs(10, *b"0123456789______");
/// Two hexadecimal digits each.
const LOWER: [[u8; 2]; 256] = pairs(16, *b"0123456789abcdef");
/// The same in capitals.
const UPPER: [[u8; 2]; 256] = pairs(16, *b"0123456789ABCDEF");

const fn pairs<const N: usize>(base: usize, digits: [u8; 16]) -> [[u8; 2]; N] {
    let mut pairs = [[0; 2]; N];
    let mut n = 0;
    while n < N {
        pairs[n] = [digits[n / base], digits[n % base]];
        n += 1;
    }
    pairs
}

/// A number in ten decimal digits, with zeros before it.
#[derive(Clone, Copy)]
pub struct Decimal([u8; 10]);

impl Decimal {
    /// Of this number.
    pub fn of(mut number: u32) -> Self {
        let mut digits = [0; 10];
        for pair in digits.as_chunks_mut::<2>().0.iter_mut().rev() {
            *pair = DECIMAL[(number % 100) as usize];
            number /= 100;
        }
        Self(digits)
    }

    /// All ten.
    pub fn padded(&self) -> &[u8; 10] {
        &self.0
    }

    /// Without the zeros before it, but at least so many digits.
    pub fn at_least(&self, width: usize) -> &[u8] {
        let zeros = self.0.iter().take_while(|digit| **digit == b'0').count();
        &self.0[zeros.min(10 - width.min(10))..]
    }
}

/// Eight hexadecimal digits in capitals.
pub fn upper(number: u32) -> [u8; 8] {
    hex(number.to_be_bytes(), &UPPER)
}

/// Eight hexadecimal digits.
pub fn lower(number: u32) -> [u8; 8] {
    hex(number.to_be_bytes(), &LOWER)
}

/// The hexadecimal digits of a SHA-256.
pub fn digest(bytes: [u8; 32]) -> [u8; 64] {
    hex(bytes, &LOWER)
}

fn hex<const BYTES: usize, const DIGITS: usize>(bytes: [u8; BYTES], pairs: &[[u8; 2]; 256]) -> [u8; DIGITS] {
    const { assert!(BYTES * 2 == DIGITS) };
    let mut digits = [0; DIGITS];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = pairs[usize::from(byte)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Each is what `format!` makes of the number.
        #[test]
        fn digits_are_those_of_format(number in any::<u32>(), bits in 0_u32..32, width in 1_usize..=10) {
            let number = number >> bits;
            let text = |digits: &[u8]| String::from_utf8_lossy(digits).into_owned();
            let decimal = Decimal::of(number);
            prop_assert_eq!(text(decimal.padded()), format!("{number:010}"));
            prop_assert_eq!(text(decimal.at_least(width)), format!("{number:0width$}"));
            prop_assert_eq!(text(&upper(number)), format!("{number:08X}"));
            prop_assert_eq!(text(&lower(number)), format!("{number:08x}"));
        }

        /// The crate `hex` says the same of a digest.
        #[test]
        fn a_digest_is_that_of_hex(bytes in any::<[u8; 32]>()) {
            prop_assert_eq!(String::from_utf8_lossy(&digest(bytes)).into_owned(), hex::encode(bytes));
        }
    }

    #[test]
    fn nought_is_one_digit() {
        assert_eq!(Decimal::of(0).at_least(1), b"0");
    }
}

//! Who is who in the load: conversation `c` belongs to business `c % businesses`; all ids follow from the two
//! numbers.
//!
//! A message is the `n`-th of its conversation and says so in its text, `m<c>.<n>`: the echo brings it back, and
//! from it alone follows which number has to answer whom.

/// The phone_number_id of a business.
pub fn number(business: u32) -> String {
    format!("10{business:013}")
}

/// The business of a phone_number_id; of a strange one 0.
pub fn business(number: &str) -> u32 {
    number.get(2..).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Its WABA.
pub fn waba(business: u32) -> String {
    format!("20{business:013}")
}

/// Its number as it is displayed.
pub fn display(business: u32) -> String {
    format!("1555{business:07}")
}

/// Its access token.
pub fn token(business: u32) -> String {
    format!("EAALOADTEST{business:08}")
}

/// The phone number of the customer in a conversation.
pub fn customer(conversation: u32) -> String {
    format!("44{conversation:010}")
}

/// Conversation and place of a message, from a word of a reply.
pub fn place(word: &str) -> Option<(u32, u32)> {
    let (conversation, nth) = word.strip_prefix('m')?.split_once('.')?;
    Some((conversation.parse().ok()?, nth.parse().ok()?))
}

/// The businesses as lines for `business import`, each token as `stored` makes it.
pub fn import_lines(businesses: u32, stored: impl Fn(&str) -> String) -> String {
    let line = |business| {
        format!(
            r#"{{"name":"Load {business}","subDomain":"load{business}","wabaId":"{}","whatsappPhoneNumberIds":["{}"],"whatsappAccessToken":"{}","whatsappEnabled":true,"isActive":true}}"#,
            waba(business),
            number(business),
            stored(&token(business)),
        )
    };
    (0..businesses).map(|business| line(business) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_its_place() {
        assert_eq!(place("m12.345"), Some((12, 345)));
        assert_eq!(business(&number(1234)), 1234);
        for word in ["", "m", "m1", "m1.", "m.1", "1.2", "m-1.2", "m1.2.3", "m99999999999.1", "mx.y"] {
            assert_eq!(place(word), None, "{word}");
        }
    }
}

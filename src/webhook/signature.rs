//! Is this body from Meta? HMAC-SHA256 over the raw bytes with the app secret, compared in constant time.
//!
//! The header is `X-Hub-Signature-256: sha256=<64 hex digits>`
//! `developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/create-webhook-endpoint`
//! The digest is over what is on the wire, escapes and all: never decode or re-serialise first. The request
//! does not name the app, so every distinct secret is tried; the secret that fits tells which app it was.

use ring::hmac;

use crate::config::App;
use crate::event::hash64;

/// Bytes of the header's value: `sha256=` and 64 digits.
pub const HEADER_LEN: usize = PREFIX.len() + 64;

const PREFIX: &[u8] = b"sha256=";

/// Why a body was not let in. The edge answers 401 to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// No signature header, and unsigned bodies are not allowed.
    Missing,
    /// The header is not `sha256=` and 64 hex digits.
    Malformed,
    /// No app secret fits.
    Mismatch,
}

/// The app secrets, prepared once.
pub struct Verifier {
    keys: Vec<(u64, hmac::Key)>,
    allow_unsigned: bool,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({} apps, unsigned: {})", self.keys.len(), self.allow_unsigned)
    }
}

impl Verifier {
    /// Of apps that share a secret the first counts; an empty secret fits nothing.
    pub fn new(apps: &[App], allow_unsigned: bool) -> Self {
        let mut keys = Vec::with_capacity(apps.len());
        for (i, app) in apps.iter().enumerate() {
            if app.secret.reveal().is_empty() || apps[..i].iter().any(|earlier| earlier.secret == app.secret)
            {
                continue;
            }
            let name = app.name.as_deref().map_or(0, |name| hash64(&[name.as_bytes()]));
            keys.push((name, hmac::Key::new(hmac::HMAC_SHA256, app.secret.reveal().as_bytes())));
        }
        Self { keys, allow_unsigned }
    }

    /// Checks `body` against the value of its signature header.
    ///
    /// Ok is the [`hash64`] of the app's name; 0 for an app without a name, and for a body without the header
    /// where unsigned bodies are allowed. A header that is there must be right, whatever is allowed. The
    /// digits may be upper case (Meta's are lower); everything else is exact: no blanks, no other digest.
    pub fn verify(&self, header: Option<&[u8]>, body: &[u8]) -> Result<u64, Rejected> {
        let Some(header) = header else {
            return if self.allow_unsigned { Ok(0) } else { Err(Rejected::Missing) };
        };
        let digits = header.strip_prefix(PREFIX).ok_or(Rejected::Malformed)?;
        let tag = tag(digits).ok_or(Rejected::Malformed)?;
        let fits = self.keys.iter().find(|(_, key)| hmac::verify(key, body, &tag).is_ok());
        fits.map(|(app, _)| *app).ok_or(Rejected::Mismatch)
    }
}

/// The digest of 64 digits. Without a branch a digit: the table says of each byte what it is worth.
fn tag(digits: &[u8]) -> Option<[u8; 32]> {
    let mut tag = [0; 32];
    if digits.len() != 2 * tag.len() {
        return None;
    }
    let mut all = 0;
    for (byte, pair) in tag.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (WORTH[usize::from(pair[0])], WORTH[usize::from(pair[1])]);
        all |= high | low;
        *byte = (high << 4) | (low & 0xf);
    }
    (all & NO_DIGIT == 0).then_some(tag)
}

const NO_DIGIT: u8 = 0x80;

/// What each byte is worth as a hex digit; [`NO_DIGIT`] for others.
static WORTH: [u8; 256] = {
    let mut worth = [NO_DIGIT; 256];
    let mut n = 0;
    while n < 16 {
        worth[b"0123456789abcdef"[n] as usize] = n as u8;
        worth[b"0123456789ABCDEF"[n] as usize] = n as u8;
        n += 1;
    }
    worth
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const BODY: &[u8] = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    const SIGNATURE: &str = "sha256=dec6a680679a968e7e0319355b23599cbfc54502c0784668e9618baa0c633756";

    fn app(name: Option<&str>, secret: &str) -> App {
        App { name: name.map(str::to_owned), secret: Secret::new(secret) }
    }

    fn verifier() -> Verifier {
        Verifier::new(&[app(None, "another"), app(Some("shop"), "test_app_secret")], false)
    }

    #[test]
    fn a_right_signature_names_its_app() {
        assert_eq!(verifier().verify(Some(SIGNATURE.as_bytes()), BODY), Ok(hash64(&[b"shop"])));
        let nameless = Verifier::new(&[app(None, "test_app_secret")], false);
        assert_eq!(nameless.verify(Some(SIGNATURE.as_bytes()), BODY), Ok(0));
    }

    #[test]
    fn blanks_in_the_body_are_signed_too() {
        let spaced = br#"{"object": "whatsapp_business_account", "entry": []}"#;
        let signature = b"sha256=56cbbaf4961c6cfdae48b7f116c047e5eb513d2c931baae63a2bc1afd26f803a";
        assert!(verifier().verify(Some(signature), spaced).is_ok());
        assert_eq!(verifier().verify(Some(SIGNATURE.as_bytes()), spaced), Err(Rejected::Mismatch));
    }

    #[test]
    fn escapes_are_signed_as_they_are_on_the_wire() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"test_app_secret");
        let wire = br#"{"a":"\u00e4\/\ud83d\ude00"}"#;
        let signature = format!("sha256={}", hex::encode(hmac::sign(&key, wire)));
        assert!(verifier().verify(Some(signature.as_bytes()), wire).is_ok());
        assert_eq!(
            verifier().verify(Some(signature.as_bytes()), r#"{"a":"ä/😀"}"#.as_bytes()),
            Err(Rejected::Mismatch)
        );
    }

    #[test]
    fn every_changed_bit_of_the_digest_is_a_mismatch() {
        let tag = hex::decode(&SIGNATURE[7..]).expect("hex");
        for bit in 0..256 {
            let mut changed = tag.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let header = format!("sha256={}", hex::encode(changed));
            assert_eq!(verifier().verify(Some(header.as_bytes()), BODY), Err(Rejected::Mismatch));
        }
    }

    #[test]
    fn the_header_is_exact_but_for_the_case_of_its_digits() {
        let upper = format!("sha256={}", SIGNATURE[7..].to_uppercase());
        assert!(verifier().verify(Some(upper.as_bytes()), BODY).is_ok());
        let hex = &SIGNATURE[7..];
        for wrong in [
            String::new(),
            "sha256=".to_owned(),
            hex.to_owned(),
            format!("sha1={hex}"),
            format!("SHA256={hex}"),
            format!(" sha256={hex}"),
            format!("sha256={hex} "),
            format!("sha256={hex}00"),
            format!("sha256={}", &hex[1..]),
            format!("sha256={}", &hex[2..]),
            format!("sha256={}zz", &hex[2..]),
            format!("sha256={hex},sha256={hex}"),
        ] {
            assert_eq!(verifier().verify(Some(wrong.as_bytes()), BODY), Err(Rejected::Malformed), "{wrong}");
        }
        assert_eq!(verifier().verify(Some(b"sha256=\xff\x00"), BODY), Err(Rejected::Malformed));
    }

    #[test]
    fn without_a_header_only_allow_unsigned_lets_in() {
        assert_eq!(verifier().verify(None, BODY), Err(Rejected::Missing));
        let open = Verifier::new(&[app(None, "test_app_secret")], true);
        assert_eq!(open.verify(None, BODY), Ok(0));
        assert_eq!(open.verify(Some(SIGNATURE.as_bytes()), BODY), Ok(0));
        assert_eq!(open.verify(Some(SIGNATURE.as_bytes()), b"{}"), Err(Rejected::Mismatch));
        assert_eq!(open.verify(Some(b""), BODY), Err(Rejected::Malformed));
        let secretless = Verifier::new(&[], true);
        assert_eq!(secretless.verify(Some(SIGNATURE.as_bytes()), BODY), Err(Rejected::Mismatch));
    }

    #[test]
    fn an_empty_secret_fits_nothing() {
        let verifier = Verifier::new(&[app(None, "")], false);
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"");
        let header = format!("sha256={}", hex::encode(hmac::sign(&key, BODY)));
        assert_eq!(verifier.verify(Some(header.as_bytes()), BODY), Err(Rejected::Mismatch));
    }

    #[test]
    fn of_apps_that_share_a_secret_the_first_counts() {
        let verifier =
            Verifier::new(&[app(Some("a"), "test_app_secret"), app(Some("b"), "test_app_secret")], false);
        assert_eq!(verifier.keys.len(), 1);
        assert_eq!(verifier.verify(Some(SIGNATURE.as_bytes()), BODY), Ok(hash64(&[b"a"])));
    }

    /// Wycheproof's vectors, in place; their keys are no texts, so they go in as keys.
    #[test]
    fn every_wycheproof_vector_has_its_verdict() {
        let beside = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let folder = std::env::var_os("WEBHOOK_SHARED").map_or(beside, std::path::PathBuf::from);
        let Ok(text) = std::fs::read(folder.join("vectors/wycheproof_hmac_sha256.json")) else {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no vectors in {}", folder.display());
            return eprintln!("NOT RUN: no vectors in {} (set WEBHOOK_SHARED)", folder.display());
        };
        let vectors: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let mut count = 0;
        for group in vectors["testGroups"].as_array().expect("groups") {
            for test in group["tests"].as_array().expect("tests") {
                let of = |name: &str| hex::decode(test[name].as_str().expect("text")).expect("hex");
                let keys = vec![(7, hmac::Key::new(hmac::HMAC_SHA256, &of("key")))];
                let verifier = Verifier { keys, allow_unsigned: false };
                let header = format!("sha256={}", hex::encode(of("tag")));
                // half a digest is valid for Wycheproof and never for us
                let expected = match (group["tagSize"].as_u64(), test["result"].as_str()) {
                    (Some(256), Some("valid")) => Ok(7),
                    (Some(256), _) => Err(Rejected::Mismatch),
                    _ => Err(Rejected::Malformed),
                };
                assert_eq!(
                    verifier.verify(Some(header.as_bytes()), &of("msg")),
                    expected,
                    "{}",
                    test["tcId"]
                );
                count += 1;
            }
        }
        assert_eq!(count, 174);
    }

    #[test]
    fn no_secret_is_shown() {
        assert!(!format!("{:?}", verifier()).contains("secret"));
    }
}

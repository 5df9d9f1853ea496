//! Quantities as Kubernetes writes them: `10M`, `1.5Gi`, `5e6` (`k8s.io/apimachinery/pkg/api/resource`).

/// Digits read of a number; more cannot matter for what fits 64 bits.
const DIGITS: usize = 24;

/// The whole number that a quantity is, rounded up; `None` if it is no quantity, negative, or beyond 64 bits.
pub(super) fn whole(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (before, behind) = number.split_once('.').unwrap_or((number, ""));
    if before.len() + behind.len() == 0 || before.len() + behind.len() > DIGITS || behind.contains('.') {
        return None;
    }
    let digits: u128 = format!("{before}{behind}").parse().ok()?;
    let (factor, exponent) = scale(suffix)?;
    let exponent = exponent - i32::try_from(behind.len()).ok()?;
    let digits = digits.checked_mul(factor)?;
    let power = 10u128.checked_pow(exponent.unsigned_abs());
    let value = match (exponent >= 0, power) {
        (true, power) => digits.checked_mul(power?)?,
        // A divisor beyond 128 bits leaves a fraction.
        (false, power) => power.map_or(u128::from(digits > 0), |power| digits.div_ceil(power)),
    };
    u64::try_from(value).ok()
}

/// What a suffix multiplies by: a factor, and a power of ten.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    let binary = |shift: u32| Some((1u128 << shift, 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            (-40..=40).contains(&exponent).then_some((1, exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn every_way_to_write_a_number() {
        for (text, value) in [
            ("10M", 10_000_000),
            ("1k", 1_000),
            ("1.5G", 1_500_000_000),
            ("1.5Gi", 1_610_612_736),
            ("5e6", 5_000_000),
            ("5E3", 5_000),
            ("1E", 1_000_000_000_000_000_000),
            ("12.3e2", 1_230),
            ("100", 100),
            ("+7", 7),
            (".5k", 500),
            ("1500m", 2),
            ("1n", 1),
            ("0", 0),
            ("16Ei", 0),
        ] {
            assert_eq!(whole(text), (text != "16Ei").then_some(value), "{text}");
        }
        for text in ["", "M", "-1", "ten", "1.2.3", "1KB", "1 M", "1e", "e6", "1e999", ".", "9999999999999999999999999"]
        {
            assert_eq!(whole(text), None, "{text}");
        }
    }
}

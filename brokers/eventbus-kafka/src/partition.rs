//! Which partition a key belongs to: the same one for the programs of every language.

/// The partition of a topic with so many partitions that the events of `key` go to.
///
/// This is the murmur2 hash of Java's default partitioner, so that a producer in Java and one of ours put one key into one
/// partition. None, where the topic has no partition.
///
/// ```
/// use eventbus_kafka::partition_of;
/// assert_eq!(partition_of(b"kafka", 6), Some(4));
/// ```
#[must_use]
pub fn partition_of(key: &[u8], partitions: u32) -> Option<u32> {
    // Java drops the sign and not the number, so that the remainder is never below zero.
    (murmur2(key) & 0x7fff_ffff).checked_rem(partitions)
}

/// Murmur2 with the seed that Kafka has.
fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const FACTOR: u32 = 0x5bd1_e995;
    let (words, rest) = key.as_chunks::<4>();
    // A key is shorter than a message, whose length is 31 bits at most.
    let mut hash = SEED ^ key.len() as u32;
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(FACTOR);
        word ^= word >> 24;
        hash = hash.wrapping_mul(FACTOR) ^ word.wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(FACTOR);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(FACTOR);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_hash_that_java_gives_it() {
        // Computed by the Java client, for keys of every length modulo four.
        for (key, hash) in [
            ("kafka", 0xd067_cf64),
            ("giberish123456789", 0x8f55_2b0c),
            ("1234", 0x9fc9_7b14),
            ("234", 0xe7c0_09ca),
            ("34", 0x8739_30da),
            ("4", 0x5a4b_5ca1),
            ("PreAmbleWillBeRemoved,ThePrePartThatIs", 0x7842_4f1c),
            ("reAmbleWillBeRemoved,ThePrePartThatIs", 0x4a62_b377),
            ("eAmbleWillBeRemoved,ThePrePartThatIs", 0xe0e4_e09e),
            ("AmbleWillBeRemoved,ThePrePartThatIs", 0x62b8_b43f),
            ("", 0x106e_08d9),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }

    #[test]
    fn every_key_has_a_partition_that_there_is() {
        let mut random = fastrand::Rng::with_seed(31);
        for _ in 0..2_000 {
            let key: Vec<u8> = (0..random.usize(..20)).map(|_| random.u8(..)).collect();
            let partitions = random.u32(1..200);
            assert!(partition_of(&key, partitions).unwrap() < partitions);
        }
        assert_eq!(partition_of(b"kafka", 0), None);
    }
}

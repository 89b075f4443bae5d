//! How many answers go to one neighbourhood over UDP, where anybody can write anybody's address on a question. Past the limit the answer
//! is no longer than the question: every other one says "ask again over TCP", which only the real owner of the address can do; the rest is
//! dropped. So nobody can make this server shout at somebody else, and nobody is shut out.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

/// Neighbourhoods share a bucket if chance has it; each limit is then a little lower for both, never higher.
const BUCKETS: usize = 1 << 15;
/// A burst lasts as many seconds' worth of answers.
const BURST: u32 = 5;

/// What to do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Send,
    /// Say only that there is more over TCP.
    Cut,
    Drop,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Thousandths of answers that have been given and not yet worn off.
    level: u32,
    /// In milliseconds, when `level` was that.
    at: u32,
}

/// The buckets of one socket.
pub struct Limiter {
    buckets: Box<[Bucket]>,
    random: RandomState,
    /// Answers a second; 0 for no limit.
    rate: u32,
    odd: bool,
}

impl Limiter {
    pub fn new(rate: u32) -> Self {
        let buckets = if rate == 0 { 0 } else { BUCKETS };
        Self { buckets: vec![Bucket::default(); buckets].into(), random: RandomState::new(), rate, odd: false }
    }

    /// Counts one answer. `now` is in milliseconds, and may go round.
    pub fn count(&mut self, to: IpAddr, now: u32) -> Verdict {
        if self.rate == 0 {
            return Verdict::Send;
        }
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash are as good as others")]
        let bucket = &mut self.buckets[self.random.hash_one(neighbourhood(to)) as usize % BUCKETS];
        let worn = now.wrapping_sub(bucket.at).saturating_mul(self.rate);
        let level = bucket.level.saturating_sub(worn);
        *bucket = Bucket { level, at: now };
        if level < self.rate.saturating_mul(BURST * 1000) {
            bucket.level = level + 1000;
            return Verdict::Send;
        }
        self.odd = !self.odd;
        if self.odd { Verdict::Cut } else { Verdict::Drop }
    }
}

/// The first 24 bits of an IPv4 address, 56 of IPv6: who can write one of them on a packet can write all.
fn neighbourhood(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => u64::from(u32::from(v4) >> 8),
        IpAddr::V6(v6) => 1 << 63 | u64::try_from(u128::from(v6) >> 72).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbourhood_past_its_limit_is_sent_to_tcp_and_others_are_not() {
        let mut limiter = Limiter::new(10);
        let flood = |limiter: &mut Limiter, now, host: u8| limiter.count([198, 51, 100, host].into(), now);
        let verdicts: Vec<Verdict> = (0..100u8).map(|host| flood(&mut limiter, 5, host)).collect();
        let of = |verdict| verdicts.iter().filter(|given| **given == verdict).count();
        assert_eq!((of(Verdict::Send), of(Verdict::Cut), of(Verdict::Drop)), (50, 25, 25));
        assert_eq!(limiter.count([203, 0, 113, 1].into(), 5), Verdict::Send);
        assert_eq!(limiter.count("2001:db8::1".parse().unwrap(), 5), Verdict::Send);
        // A second later ten more may pass.
        let later = (0..100u8).filter(|host| flood(&mut limiter, 1005, *host) == Verdict::Send).count();
        assert_eq!(later, 10);
        // The clock has gone round.
        assert_eq!(flood(&mut limiter, 3, 1), Verdict::Send);
        assert!((0..1000).all(|_| Limiter::new(0).count([198, 51, 100, 1].into(), 5) == Verdict::Send));
    }
}

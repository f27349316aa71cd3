//! What the server itself does on one connection: redis-benchmark, which comes with it, sends 64 GETs at once, does
//! nothing with the answers, and sends the next 64 when all have come.

use std::process::Command;
use std::time::Duration;

use redis::Commands;

use super::{Subject, TTL, Work};
use crate::VALUE;
use crate::meter::Sample;

/// redis-benchmark, if it is found.
pub(super) fn subject(url: &str) -> Option<Box<dyn Subject>> {
    let mut limit = Limit { url: url.to_string() };
    match limit.measure(64) {
        Ok(_) => Some(Box::new(limit)),
        Err(why) => {
            eprintln!("without redis-benchmark: {why}");
            None
        }
    }
}

struct Limit {
    url: String,
}

impl Limit {
    /// Operations per second.
    fn measure(&mut self, times: u32) -> Result<f64, String> {
        let key = "redis-benchmark|one";
        let set = |mut connection: redis::Connection| connection.set_ex::<_, _, ()>(key, &VALUE, TTL);
        let connection = redis::Client::open(&*self.url).and_then(|client| client.get_connection());
        connection.and_then(set).map_err(|error| error.to_string())?;
        let ran = Command::new("redis-benchmark")
            .args(["-u", &self.url, "-P", "64", "-c", "1", "-n", &times.to_string(), "--csv", "GET", key])
            .output()
            .map_err(|error| error.to_string())?;
        // A header, then the name of the test, its operations per second, and more.
        let out = String::from_utf8_lossy(&ran.stdout);
        let rate = out.lines().last().and_then(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok());
        rate.ok_or_else(|| format!("it printed {out:?} {:?}", String::from_utf8_lossy(&ran.stderr)))
    }
}

impl Subject for Limit {
    fn name(&self) -> &'static str {
        "redis-benchmark"
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        if work != Work::Get64Tasks {
            return None;
        }
        let rate = self.measure(times).expect("what worked at first works on");
        let elapsed = Duration::from_secs_f64(f64::from(times) / rate);
        Some(Sample { took: Vec::new(), elapsed, cpu: None, allocations: None, operations: times })
    }
}

//! Lists of Neuron cores: `0-3`, `0,2-3`. A core belongs to one worker.

use std::fmt;

/// Cores in ascending order, none twice, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    numbers: Vec<u32>,
}

/// More than the largest instance has.
const CORE_MAX: u32 = 4095;

impl Cores {
    /// From `neuron:0-1`, as `device` takes it.
    pub fn of_device(device: &str) -> Result<Self, String> {
        match device.split_once(':') {
            Some(("neuron", list)) => Self::parse(list).map_err(|why| format!("device is '{device}': {why}")),
            _ => Err(format!(
                "device is '{device}'; of a worker it is neuron:CORES, e.g. neuron:0-1; for other hardware use env"
            )),
        }
    }

    pub fn parse(list: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let number = text.trim().parse::<u32>().ok().filter(|number| *number <= CORE_MAX);
            number.ok_or_else(|| format!("'{}' is no number of a core", text.trim()))
        };
        let mut numbers = Vec::new();
        for part in list.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(format!("{first}-{last} goes backwards"));
            }
            numbers.extend(first..=last);
        }
        numbers.sort_unstable();
        if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("core {} is named twice", twice[0]));
        }
        Ok(Self { numbers })
    }

    pub fn count(&self) -> usize {
        self.numbers.len()
    }

    /// A core that both have.
    pub fn shared_with(&self, other: &Self) -> Option<u32> {
        self.numbers.iter().find(|number| other.numbers.contains(number)).copied()
    }

    /// Neighbours together, in parts of the same size.
    pub fn split(&self, parts: u32) -> Result<Vec<Self>, String> {
        let parts = parts as usize;
        let (count, rest) = (self.count() / parts.max(1), self.count() % parts.max(1));
        if count == 0 || rest != 0 {
            return Err(format!(
                "{} cores cannot be shared evenly by {parts} replicas; change device or replicas",
                self.count()
            ));
        }
        Ok(self.numbers.chunks(count).map(|numbers| Self { numbers: numbers.to_vec() }).collect())
    }
}

impl fmt::Display for Cores {
    /// As `NEURON_RT_VISIBLE_CORES` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.numbers.chunk_by(|one, next| one + 1 == *next).map(|range| match range {
            [only] => only.to_string(),
            range => format!("{}-{}", range[0], range[range.len() - 1]),
        });
        f.write_str(&ranges.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, meant) in [
            ("neuron:0", Ok("0")),
            ("neuron:0-1", Ok("0-1")),
            ("neuron: 4 , 0-2", Ok("0-2,4")),
            ("neuron:0,1,2,3", Ok("0-3")),
            ("neuron:", Err("no number")),
            ("neuron:a", Err("no number")),
            ("neuron:3-1", Err("goes backwards")),
            ("neuron:0-1,1", Err("core 1 is named twice")),
            ("neuron:0-4294967295", Err("no number")),
            ("cuda:0", Err("neuron:CORES")),
            ("neuron", Err("neuron:CORES")),
        ] {
            match (Cores::of_device(text), meant) {
                (Ok(cores), Ok(meant)) => assert_eq!(cores.to_string(), meant),
                (Err(why), Err(meant)) => assert!(why.contains(meant), "{text}: {why}"),
                (got, meant) => panic!("{text}: {got:?} and not {meant:?}"),
            }
        }
    }

    #[test]
    fn cores_are_shared_evenly_or_not_at_all() {
        let cores = Cores::parse("0-3").expect("good");
        let parts = |count| cores.split(count).map(|parts| parts.iter().map(Cores::to_string).collect::<Vec<_>>());
        assert_eq!(parts(1), Ok(vec!["0-3".to_owned()]));
        assert_eq!(parts(2), Ok(vec!["0-1".to_owned(), "2-3".to_owned()]));
        for refused in [0, 3, 5] {
            assert!(refused == 0 || parts(refused).is_err(), "{refused}");
        }
        assert_eq!(cores.shared_with(&Cores::parse("3-5").expect("good")), Some(3));
        assert_eq!(cores.shared_with(&Cores::parse("4").expect("good")), None);
    }
}

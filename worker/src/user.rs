//! The account that a worker runs under.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An account of this machine, with the groups it is in: one of them may own the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub home: PathBuf,
    pub ids: Ids,
}

/// As the kernel knows an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
}

impl User {
    /// From `/etc/passwd` and `/etc/group`. Accounts of a directory service are not there.
    pub fn named(name: &str) -> Result<Self, String> {
        let read = |path: &str| std::fs::read_to_string(path).map_err(|why| format!("cannot read {path}: {why}"));
        let found = find(name, &read("/etc/passwd")?, &read("/etc/group")?);
        let user =
            found.ok_or_else(|| format!("the user '{name}' is not in /etc/passwd; add it, or leave user out"))?;
        if user.ids.user == 0 {
            return Err("a worker does not run as root; name another user, or leave user out".to_owned());
        }
        Ok(user)
    }

    /// Whether this process may become another user.
    pub fn can_change() -> bool {
        rustix::process::geteuid().is_root()
    }
}

fn find(name: &str, passwd: &str, group: &str) -> Option<User> {
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    let (user, own) = (line.get(2)?.parse().ok()?, line.get(3)?.parse().ok()?);
    let home = Path::new(line.get(5)?).to_owned();
    let member_of = group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_member = fields.get(3)?.split(',').any(|member| member.trim() == name);
        is_member.then(|| fields[2].parse::<u32>().ok()).flatten()
    });
    let mut groups = vec![own];
    groups.extend(member_of.filter(|id| *id != own));
    Some(User { name: name.to_owned(), home, ids: Ids { user, group: own, groups } })
}

impl fmt::Display for Ids {
    /// `USER:GROUP:GROUP,GROUP`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        write!(f, "{}:{}:{}", self.user, self.group, groups.join(","))
    }
}

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not USER:GROUP:GROUPS in numbers");
        let fields: Vec<&str> = text.split(':').collect();
        let [user, group, groups] = fields[..] else { return Err(wrong()) };
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let groups = groups.split(',').map(number).collect::<Result<_, _>>()?;
        Ok(Self { user: number(user)?, group: number(group)?, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_all_its_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\ninfer:x:990:980::/var/lib/infer:/usr/sbin/nologin\n";
        let group = "root:x:0:\ninfer:x:980:\nneuron:x:970:other, infer\nother:x:5:\n";
        let user = find("infer", passwd, group).expect("it is there");
        assert_eq!(user.ids, Ids { user: 990, group: 980, groups: vec![980, 970] });
        assert_eq!(user.home, Path::new("/var/lib/infer"));
        assert_eq!(user.ids.to_string().parse(), Ok(user.ids));
        assert_eq!(find("nobody", passwd, group), None);
        assert!("1:2".parse::<Ids>().is_err() && "1:2:x".parse::<Ids>().is_err());
    }
}

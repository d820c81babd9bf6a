//! `sconce keys`: make API keys, and the lines that let them in.

use std::io::Read;

use clap::{Args, Subcommand};

use super::output;
use crate::config::keys;
use crate::error::{Error, Result};

#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a key: it is printed once, with the table for sconce.toml that lets it in
    New {
        /// What logs call its bearer
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Print the table for a key of your own, which is read from stdin
    Hash {
        /// What logs call its bearer
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub fn run(args: &KeysArgs) -> Result<()> {
    match &args.command {
        KeysCommand::New { name } => {
            let key = keys::generate()?;
            let table = table(name, &key)?;
            output::line(&format!("# the key, shown only now: {key}\n{table}"));
        }
        KeysCommand::Hash { name } => {
            let mut sent = String::new();
            std::io::stdin()
                .read_to_string(&mut sent)
                .map_err(|why| Error::invalid("stdin", format!("cannot read a key from stdin: {why}")))?;
            let key = sent.trim();
            if key.is_empty() {
                return Err(Error::invalid("stdin", "no key came from stdin; pipe one in"));
            }
            output::line(&table(name, key)?);
        }
    }
    Ok(())
}

/// The table, after a look whether the server would take it.
fn table(name: &str, key: &str) -> Result<String> {
    let hash = keys::hash_text(key);
    keys::checked(&[keys::KeySection { name: name.to_owned(), hash: hash.clone(), ..keys::KeySection::default() }])?;
    Ok(format!(
        "[[keys]]\nname = \"{name}\"\nhash = \"{hash}\"\n# models = [\"smollm2:135m\"]\n# requests_per_minute = 60\n\
         # tokens_per_minute = 100000\n# concurrent_requests = 4\n# priority = 0"
    ))
}

//! `tidings reload`: asks the running router, by its API, to read its table again.
//!
//! Exit code 0: the new table is in force, with its warnings on stderr; 1: it was refused, with all diagnostics on stderr;
//! 2: there is nobody to ask.

use super::{
    Fault,
    api::{self, Which},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let (status, body) = api::ask(&args.which, "POST", "/api/v1/reload", None)?;
    if status != 200 {
        let text = body["text"].as_str().unwrap_or("no reason given");
        return Err(Fault::new(format_args!("{text}; the table was not taken, the present one stays")));
    }
    for warning in body["warnings"].as_array().into_iter().flatten() {
        let (file, message) =
            (warning["file"].as_str().unwrap_or("?"), warning["message"].as_str().unwrap_or("?"));
        eprintln!("{file}:{}:{}: warning: {message}", warning["line"], warning["column"]);
    }
    let (version, rules) = (&body["version"], &body["rules"]);
    println!(
        "table {} is in force: version {version}, {rules} rules",
        body["source"].as_str().unwrap_or("?")
    );
    Ok(())
}

//! The progress of work at many letters, on a terminal; and Ctrl-C, which ends it cleanly.

use std::{cell::RefCell, io::IsTerminal as _, rc::Rc};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::complain;
use crate::dead_letters::Progress;

/// Fewer letters are looked at before anybody could read it.
const SHOWN_FROM: u32 = 500;

/// What is shown of the progress, and the way to stop.
#[derive(Clone)]
pub(super) struct Watch {
    stop: CancellationToken,
    bar: Rc<RefCell<Option<ProgressBar>>>,
    shows: bool,
}

impl Watch {
    /// Begins to listen for Ctrl-C and SIGTERM. `prints`: lines are printed meanwhile, which a bar on the same terminal would
    /// break up.
    pub(super) fn start(prints: bool) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let second = super::run::on_signals(stop.clone())?;
        tokio::spawn(async move {
            second.cancelled().await;
            complain("cut short: the broker takes the letters back");
            std::process::exit(1);
        });
        let shows = std::io::stderr().is_terminal() && !(prints && std::io::stdout().is_terminal());
        Ok(Self { stop, bar: Rc::default(), shows })
    }

    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Whom a desk tells how far it has come.
    pub(super) fn watcher(&self) -> Box<dyn Fn(Progress)> {
        let watch = self.clone();
        Box::new(move |progress| watch.tell(progress))
    }

    fn tell(&self, progress: Progress) {
        let mut bar = self.bar.borrow_mut();
        match progress {
            Progress::Waits(class) => {
                complain(&format!(
                    "somebody else looks at letters of class {class}: waiting (Ctrl-C ends it)"
                ));
            }
            Progress::Begins(class, letters) if self.shows && letters >= SHOWN_FROM => {
                let target = ProgressDrawTarget::stderr();
                let shown = ProgressBar::with_draw_target(Some(letters.into()), target);
                let style = "{msg} {wide_bar} {pos}/{len} {eta}";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    shown.set_style(style);
                }
                shown.set_message(class.to_string());
                *bar = Some(shown);
            }
            Progress::Begins(..) => {}
            Progress::Advances => {
                if let Some(bar) = &*bar {
                    bar.inc(1);
                }
            }
            Progress::Ends => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

//! The progress bar of commands that read many dead letters, and their clean end on Ctrl-C.

use std::{cell::RefCell, io::IsTerminal as _, rc::Rc};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::{Exit, print_error};
use crate::dead_letters::Progress;

/// The smallest queue that gets a progress bar. A smaller one is read before anybody could read
/// the bar.
const SHOWN_FROM: u32 = 500;

/// The progress bar, if there is one, and the token that Ctrl-C cancels.
#[derive(Clone)]
pub(super) struct Watch {
    stop: CancellationToken,
    bar: Rc<RefCell<Option<ProgressBar>>>,
    shows: bool,
}

impl Watch {
    /// Starts to listen for Ctrl-C and SIGTERM. `prints`: the command prints lines while it works,
    /// so a bar on the same terminal would break them up and is not shown.
    ///
    /// # Errors
    /// The signals cannot be handled. The reason is printed.
    pub(super) fn start(prints: bool) -> Result<Self, Exit> {
        let stop = CancellationToken::new();
        let second = super::run::on_signals(stop.clone()).map_err(|error| {
            print_error(&format!("error: cannot handle SIGINT and SIGTERM: {error}"));
            Exit::Failed
        })?;
        tokio::spawn(async move {
            second.cancelled().await;
            print_error("aborted: unacked messages are requeued");
            std::process::exit(1);
        });
        let shows = std::io::stderr().is_terminal() && !(prints && std::io::stdout().is_terminal());
        Ok(Self { stop, bar: Rc::default(), shows })
    }

    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// A callback for [`crate::dead_letters::Desk::watcher`] that draws the bar.
    pub(super) fn watcher(&self) -> Box<dyn Fn(Progress)> {
        let watch = self.clone();
        Box::new(move |progress| watch.show(progress))
    }

    fn show(&self, progress: Progress) {
        let mut bar = self.bar.borrow_mut();
        match progress {
            Progress::Waits(class) => {
                print_error(&format!(
                    "another command is reading the dead letters of class {class}: waiting for \
                     it to end (Ctrl-C stops waiting)"
                ));
            }
            Progress::Begins(class, dead_letters) if self.shows && dead_letters >= SHOWN_FROM => {
                let target = ProgressDrawTarget::stderr();
                let shown = ProgressBar::with_draw_target(Some(dead_letters.into()), target);
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

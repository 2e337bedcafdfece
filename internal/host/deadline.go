package host

import (
	"context"
	"time"
)

// Deadline makes ctx a deadline: I/O fails with os.ErrDeadlineExceeded from the end of ctx on. set
// is a SetDeadline, SetReadDeadline or SetWriteDeadline. After release has returned, set is not
// called.
func Deadline(ctx context.Context, set func(time.Time) error) (release func()) {
	called := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(called)
		_ = set(time.Unix(1, 0)) // it fails after a close only, which ends the I/O too
	})
	return func() {
		if !stop() {
			<-called
		}
	}
}

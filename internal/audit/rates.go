package audit

import (
	"time"

	"golang.org/x/time/rate"
)

// Kind is what happens to lines of a user who causes very many.
type Kind uint8

const (
	Change  Kind = iota // never left out; the user is slowed down
	Refusal             // counted beyond the rate, as all that follow
	Stream              // a step that changes little: the first write of a stream, a touch
	Guest               // a change of a guest's file
	Own                 // what the daemon does by itself with a user's VM
)

// rates bounds the lines of one user of each kind: how many at once, and how many a second from
// then on.
var rates = [...]struct {
	burst  int
	second rate.Limit
}{
	Change:  {5000, 500},
	Refusal: {100, 20},
	Stream:  {100, 20},
	Guest:   {100, 20},
	Own:     {100, 20},
}

// slowest bounds how long a user waits who makes changes too fast.
const slowest = time.Second

// payer is the holder of a rate.
type payer struct {
	uid  uint32
	kind Kind
}

// limiterLocked returns the rate of a user's lines.
func (l *Log) limiterLocked(p payer) *rate.Limiter {
	r := l.limiters[p]
	if r == nil {
		r = rate.NewLimiter(rates[p.kind].second, rates[p.kind].burst)
		l.limiters[p] = r
	}
	return r
}

// forgetLocked drops the rates of users who are far from their bounds.
func (l *Log) forgetLocked(now time.Time) {
	for p, r := range l.limiters {
		if r.TokensAt(now) >= float64(rates[p.kind].burst) {
			delete(l.limiters, p)
		}
	}
}

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// A registry that breaks is asked again, after 1, 2, 4, 8 and 16 seconds. It may ask to wait longer
// (Retry-After, RFC 9110), but not longer than maxAfter.
const (
	maxAgain   = 5
	firstAgain = time.Second
	maxAfter   = 2 * time.Minute
)

// busyStatus are the answers after which the same question may be answered.
var busyStatus = []int{
	http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// busyError is the error of an answer with a busyStatus.
type busyError struct {
	status string
	after  time.Duration // that the registry asks to wait; 0 if it does not
}

func (b *busyError) Error() string { return "the registry answers " + b.status }

// busy returns the error of an answer with a busyStatus, nil for another answer.
func busy(r *http.Response) *busyError {
	if !slices.Contains(busyStatus, r.StatusCode) {
		return nil
	}
	text := strconv.Itoa(r.StatusCode) + " " + http.StatusText(r.StatusCode)
	return &busyError{text, retryAfter(r.Header.Get("Retry-After"), time.Now())}
}

// retryAfter returns the wait that a Retry-After asks for: seconds, or a date.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// brokenError is the error of a connection that broke or stalled while a layer came over it.
type brokenError struct{ error }

func (b *brokenError) Unwrap() error { return b.error }

// heals reports whether an error may be gone at the next try.
func heals(err error) bool {
	var answer *busyError
	var broken *brokenError
	var dns *net.DNSError
	var timed net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &answer), errors.As(err, &broken):
		return true
	case errors.As(err, &dns):
		return dns.IsTemporary || dns.IsTimeout
	case errors.As(err, &timed) && timed.Timeout():
		return true
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// patience is how often and how long one question is asked again.
type patience struct {
	first time.Duration
	tries int // that have failed
}

// wait waits until it is time for the next try. It returns the error of the last one if that does
// not heal or was the last, and ends with ctx.
func (p *patience) wait(ctx context.Context, err error) error {
	if ctx.Err() != nil || !heals(err) {
		return err
	}
	if p.tries++; p.tries > maxAgain {
		return fmt.Errorf("%w; it was asked %d times", err, p.tries)
	}
	wait := p.first << (p.tries - 1)
	wait += rand.N(wait/4 + 1) // builds that a registry turned away at once do not return at once
	var b *busyError
	if errors.As(err, &b) && b.after > 0 {
		if b.after > maxAfter {
			return fmt.Errorf("%w and asks to wait %v; write the source again then",
				err, b.after.Round(time.Second))
		}
		wait = max(wait, b.after)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// patient is the transport for all answers of a registry. It reads short ones to their ends, and
// asks again where it may help. Layers have a download of their own.
type patient struct {
	*asker
	first time.Duration
}

// RoundTrip implements http.RoundTripper.
func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, layer := p.layer(r); layer || r.Body != nil {
		return p.asker.RoundTrip(r)
	}
	patience := patience{first: p.first}
	for {
		response, err := p.whole(r)
		if err == nil {
			b := busy(response)
			if b == nil {
				return response, nil
			}
			err = b
		}
		if err := patience.wait(r.Context(), err); err != nil {
			return nil, err
		}
	}
}

// whole returns an answer with its body in memory. Without its body, an error is one all the same.
func (p *patient) whole(r *http.Request) (*http.Response, error) {
	response, err := p.asker.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil && response.StatusCode < http.StatusBadRequest {
		if !errors.Is(err, errLong) {
			err = &brokenError{err}
		}
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(text))
	return response, nil
}

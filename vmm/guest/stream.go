package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

const (
	upgrade      = "banger"
	maxRequest   = 64 << 10 // bytes of a stream's request
	maxUpgrade   = 16 << 10 // bytes of the answer's header
	maxRefusal   = 4 << 10
	upgradeReply = "HTTP/1.1 101 Switching Protocols\r\n" +
		"Connection: Upgrade\r\nUpgrade: " + upgrade + "\r\n\r\n"
)

// StreamHandler prepares a stream for a request of the host. Its error refuses the stream, and is
// sent to the host. Otherwise serve is called with the stream, closes it, and may block until then.
type StreamHandler func(request json.RawMessage) (serve func(net.Conn), err error)

// handleStream serves h to requests that upgrade HTTP/1.1 (RFC 9110, section 7.8).
func handleStream(h StreamHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.Header.Get("Upgrade") != upgrade {
			http.Error(w, "this path is a stream: upgrade to "+upgrade, http.StatusUpgradeRequired)
			return
		}
		// Before h: h may reserve something that only serve releases.
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		serve, err := h(request)
		if err != nil {
			refuseStream(conn, err)
			return
		}
		// A write that fails is noticed, and the stream closed, by serve.
		_, _ = io.WriteString(conn, upgradeReply)
		serve(&stream{Conn: conn, r: buffered.Reader, stop: func() bool { return true }})
	}
}

// refuseStream answers with err in place of the stream, and closes conn.
func refuseStream(conn net.Conn, err error) {
	text := err.Error()
	response := http.Response{
		StatusCode: http.StatusInternalServerError,
		ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"text/plain; charset=utf-8"}},
		Body:          io.NopCloser(strings.NewReader(text)),
		ContentLength: int64(len(text)),
		Close:         true,
	}
	_ = response.Write(conn) // a host that has gone needs no reason
	conn.Close()
}

// stream is a connection after its upgrade.
type stream struct {
	net.Conn
	r    *bufio.Reader // may hold data that arrived with the upgrade
	stop func() bool   // ends the watch over the client's life
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *stream) Close() error {
	s.stop()
	return s.Conn.Close()
}

var _ Streamer = (*Client)(nil)

// Stream implements [Streamer]. Closing the client ends the stream.
func (c *Client) Stream(ctx context.Context, path string, request any) (net.Conn, error) {
	var opened net.Conn
	err := c.ask(ctx, path, request, func(ctx context.Context, body io.Reader) error {
		conn, err := c.connect(ctx, "", "")
		if err != nil {
			return err
		}
		abort := context.AfterFunc(ctx, func() { conn.Close() })
		r, err := requestUpgrade(ctx, conn, path, body)
		if !abort() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
			return err
		}
		opened = &stream{Conn: conn, r: r, stop: context.AfterFunc(c.ctx, func() { conn.Close() })}
		return nil
	})
	return opened, err
}

// requestUpgrade asks for a stream and returns its reader.
func requestUpgrade(
	ctx context.Context, conn net.Conn, path string, body io.Reader,
) (*bufio.Reader, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", upgrade)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	bounded := &io.LimitedReader{R: conn, N: maxUpgrade}
	r := bufio.NewReader(bounded)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		if bounded.N <= 0 {
			text := fmt.Sprintf("its answer has a header of over %d bytes", maxUpgrade)
			err = &badAnswer{text: text}
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // a part of it will do
		return nil, httpFailure(resp.StatusCode, text)
	}
	bounded.N = 1<<63 - 1 // the stream itself may be of any length
	return r, nil
}

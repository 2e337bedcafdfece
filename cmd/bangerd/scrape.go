package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds for clients of metrics_listen.
const (
	scrapeConns   = 16
	scrapeHeader  = 16 << 10 // bytes
	scrapeRequest = 5 * time.Second
	scrapeAnswer  = 30 * time.Second
)

// listenAddress returns the address that metrics_listen stands for. A port alone is on loopback;
// all addresses are "0.0.0.0:9273".
func listenAddress(s string) (string, error) {
	if !strings.Contains(s, ":") {
		s = ":" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return "", fmt.Errorf("metrics_listen = %q is neither a port nor HOST:PORT", s)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// serveMetrics answers GET /metrics at address until stop is called. stop waits for the end.
func serveMetrics(
	log *slog.Logger, address string, h http.Handler,
) (stop func(context.Context) error, err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	s := &http.Server{Handler: mux, ReadTimeout: scrapeRequest, WriteTimeout: scrapeAnswer,
		IdleTimeout: scrapeAnswer, MaxHeaderBytes: scrapeHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ended := make(chan struct{})
	go func() { // ends with stop
		defer close(ended)
		err := s.Serve(netutil.LimitListener(l, scrapeConns))
		if !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are no longer served", "err", err)
		}
	}()
	log.Info("serving metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return func(ctx context.Context) error {
		defer func() { <-ended }()
		if err := s.Shutdown(ctx); err != nil {
			return s.Close()
		}
		return nil
	}, nil
}

// A MongoDB-protocol server for the tests: FerretDB with its SQLite backend, embedded as a library.
//
//	ferretdb ADDRESS FOLDER
//
// It keeps its data in FOLDER, which must exist, and prints the address it listens on (port 0 picks one). It
// ends when its standard input does, so that it does not outlive the tests that started it.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: ferretdb ADDRESS FOLDER")
		os.Exit(64)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "ferretdb:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address, folder string) error {
	// the path must end in a slash
	config := ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: address},
		Handler:   "sqlite",
		SQLiteURL: "file:" + strings.TrimSuffix(folder, "/") + "/",
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}
	server, err := ferretdb.New(&config)
	if err != nil {
		return err
	}
	go func() {
		// waits until it listens
		uri, err := url.Parse(server.MongoDBURI())
		if err != nil {
			panic(err)
		}
		fmt.Println(uri.Host)
	}()
	return server.Run(ctx)
}

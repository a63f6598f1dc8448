package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
)

const (
	dataDefault   = "plinth-data"
	apiSocketName = "api.sock"
	apiTokenName  = "api.token"
	rootKeyName   = "root.key"
)

// apiFlags say where the API is, for every command that calls it.
func apiFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "api", EnvVars: []string{"PLINTH_API"}, Usage: "where the API is: unix:PATH or HOST:PORT",
			DefaultText: "unix:" + filepath.Join(dataDefault, apiSocketName)},
		&cli.StringFlag{Name: "token-file", EnvVars: []string{"PLINTH_TOKEN_FILE"}, Usage: "bearer token for an API over TCP"},
		&cli.StringFlag{Name: "ca-file", EnvVars: []string{"PLINTH_CA_FILE"}, Usage: "certificates to trust for an API over TLS"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON"},
	}
}

// connect returns a client for the API that the flags name.
func connect(c *cli.Context) (*api.Client, error) {
	text := c.String("api")
	if text == "" {
		text = "unix:" + filepath.Join(dataDefault, apiSocketName)
	}
	address, err := api.ParseAddress(text)
	if err != nil {
		return nil, err
	}
	opts := api.ClientOptions{CAFile: c.String("ca-file")}
	if path := c.String("token-file"); path != "" {
		if opts.Token, err = api.ReadToken(path); err != nil {
			return nil, err
		}
	}
	return api.NewClient(address, opts)
}

// call runs f with a client.
func call(c *cli.Context, f func(*api.Client) error) error {
	client, err := connect(c)
	if err != nil {
		return err
	}
	defer client.Close()
	return f(client)
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

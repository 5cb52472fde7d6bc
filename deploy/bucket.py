"""Make the bucket $BUCKET at $MLFLOW_S3_ENDPOINT_URL, unless it is there; with the keys that boto3 finds."""

import os

import boto3

bucket = boto3.resource("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"]).Bucket(os.environ["BUCKET"])
if bucket.creation_date is None:
    bucket.create()
